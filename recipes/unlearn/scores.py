"""How much a latent belongs to a concept, at each timestep: larger is more."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.recipes.unlearn.statistics import Contrast

EPS = 1e-8
Score = Callable[[Contrast], Float[Tensor, "T s"]]


def saeuron(c: Contrast) -> Float[Tensor, "T s"]:
    """m_c / (sum m_c + eps) - m_o / (sum m_o + eps) (arXiv 2501.18052, eq. 5)."""
    return _share(c.mean) - _share(c.other)


def _share(mean: Tensor) -> Tensor:
    return mean / (mean.sum(1, keepdim=True) + EPS)


def difference(c: Contrast) -> Float[Tensor, "T s"]:
    """The difference of means over the standard deviation within both groups."""
    spread = ((c.variance + c.other_variance) / 2).sqrt()
    floor = 0.05 * spread.mean(1, keepdim=True) + EPS  # latents that hardly ever fire
    return (c.mean - c.other) / (spread + floor)


def shift(c: Contrast) -> Float[Tensor, "T s"]:
    """The size of the difference of means, of either sign: how far an atom moves the output.

    What a first-order attribution of the mean shift to latents gives, with atoms of one norm.
    """
    return (c.mean - c.other).abs()


def selective(c: Contrast) -> Float[Tensor, "T s"]:
    """The difference of means times the share of activity that is the concept's own."""
    own = c.active / (c.active + c.other_active + EPS)
    return torch.relu(c.mean - c.other) * own


SCORES: dict[str, Score] = {
    "saeuron": saeuron,
    "difference": difference,
    "shift": shift,
    "selective": selective,
}
