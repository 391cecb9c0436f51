"""How much a latent belongs to a concept, at each timestep: larger is more.

Of a contrast [T s] and the SAE's atoms [s d].
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.recipes.unlearn.statistics import Contrast

EPS = 1e-8
Atoms = Float[Tensor, "s d"]
Score = Callable[[Contrast, Atoms], Float[Tensor, "T s"]]


def saeuron(c: Contrast, atoms: Atoms) -> Float[Tensor, "T s"]:
    """m_c / (sum m_c + eps) - m_o / (sum m_o + eps) (arXiv 2501.18052, eq. 5)."""
    return _share(c.mean) - _share(c.other)


def _share(mean: Tensor) -> Tensor:
    return mean / (mean.sum(1, keepdim=True) + EPS)


def difference(c: Contrast, atoms: Atoms) -> Float[Tensor, "T s"]:
    """The difference of means over the standard deviation within both groups."""
    spread = ((c.variance + c.other_variance) / 2).sqrt()
    floor = 0.05 * spread.mean(1, keepdim=True) + EPS  # latents that hardly ever fire
    return (c.mean - c.other) / (spread + floor)


def shift(c: Contrast, atoms: Atoms) -> Float[Tensor, "T s"]:
    """How far each latent moves the output, of either sign: |difference of means| * |atom|."""
    moved: Tensor = (c.mean - c.other).abs() * atoms.norm(dim=1)
    return moved


def attribution(c: Contrast, atoms: Atoms) -> Float[Tensor, "T s"]:
    """How much of what a probe reads is each latent's; over latents they add up to all of it.

    The probe is the unit direction from the other mean to the concept's in the space of the site
    (mass-mean probe, arXiv 2310.06824), as the SAE decodes them.
    """
    delta = c.mean - c.other
    moved = delta @ atoms
    probe = moved / (moved.norm(dim=1, keepdim=True) + EPS)
    parts: Tensor = delta * (probe @ atoms.T)
    return parts


def selective(c: Contrast, atoms: Atoms) -> Float[Tensor, "T s"]:
    """The difference of means times the share of activity that is the concept's own."""
    own = c.active / (c.active + c.other_active + EPS)
    return torch.relu(c.mean - c.other) * own


SCORES: dict[str, Score] = {
    "saeuron": saeuron,
    "difference": difference,
    "shift": shift,
    "attribution": attribution,
    "selective": selective,
}
