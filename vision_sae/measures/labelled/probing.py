"""What can be read off: from k latents (sparse probing), all latents, the reconstruction, or x.

Gurnee et al. 2023, "Finding Neurons in a Haystack" (arXiv 2305.01610); SAEBench (Karvonen et al.
2025, arXiv 2503.09532), both for the form with few latents.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.measures.labelled import logistic
from vision_sae.measures.labelled.ranking import best, mean_difference, moments
from vision_sae.measures.labelled.rows import columns, live
from vision_sae.measures.labelled.scoring import Rates, f1_of_images, rates
from vision_sae.measures.labelled.task import Task
from vision_sae.sparse.codes import Codes

KS = (1, 2, 5)


@dataclass(frozen=True)
class Probed:
    """How well each value is told on test; `board` is the F1 of the set of values of an image."""

    rates: Rates
    board: float

    def means(self) -> dict[str, float]:
        return self.rates.means() | {"board": self.board}


def probe(features: logistic.Features, task: Task, *, C: float = 1.0) -> Probed:
    """A class-balanced logistic regression per value on all features, [n d] or codes.

    On x it is the ceiling of what any code of x lets a linear reader see.
    """
    scores = logistic.fit(features, task.members, task.train, C=C)(features)
    return probed(scores, task)


def probed(scores: Float[Tensor, "n v"], task: Task) -> Probed:
    found = rates(scores, task)
    return Probed(found, f1_of_images(found.predicted, task.members[task.test]))


@dataclass(frozen=True)
class SparseProbe:
    """A probe on k latents for each value; `random` is the control: k live latents at random.

    `random` is None where it was not asked for.
    """

    k: int
    latents: Int[Tensor, "v k"]
    found: Rates | None
    random: Rates | None
    reason: str = ""

    def means(self) -> dict[str, float]:
        """Means over the values, and the control's; NaN when no latent fires."""
        out: dict[str, float] = {}
        for prefix, one in (("", self.found), ("random ", self.random)):
            means = one.means() if one else dict.fromkeys(("f1", "balanced", "auroc"), math.nan)
            out |= {prefix + name: number for name, number in means.items()}
        return out


def sparse_probe(
    codes: Codes, task: Task, k: int, *, control: bool = True, seed: int = 0
) -> SparseProbe:
    """The k latents of largest |mean difference| on train, then a logistic regression on them.

    As SAEBench, but class-balanced, since a value may be rare. Fewer than k live latents: all.
    """
    alive = live(codes)
    if not len(alive):
        empty = torch.zeros(len(task.names), 0, dtype=torch.int64)
        return SparseProbe(k, empty, None, None, "no latent fires")
    difference = mean_difference(moments(codes, task.members, task.train)).abs()
    latents = alive[best(difference[alive], k)]
    generator = torch.Generator().manual_seed(seed)
    v = len(task.names)
    drawn = torch.stack([torch.randperm(len(alive), generator=generator)[:k] for _ in range(v)])
    found = rates(few(codes, task, latents), task)
    random = rates(few(codes, task, alive[drawn]), task) if control else None
    return SparseProbe(k, latents, found, random)


def few(codes: Codes, task: Task, latents: Int[Tensor, "v k"]) -> Float[Tensor, "n v"]:
    """Scores of every image for each value, by a probe on that value's own latents."""
    scores = torch.zeros(task.members.shape)
    for value, own in enumerate(latents):
        x = columns(codes, own)
        scores[:, value] = logistic.fit_few(x, task.members[:, value], task.train)(x)[:, 0]
    return scores
