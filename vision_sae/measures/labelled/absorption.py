"""Does a super-class's latent stay off where a sub-class's latent speaks for it? (absorption)

Chanin et al. 2024, "A is for Absorption" (arXiv 2409.14507), with the fraction of SAEBench (arXiv
2503.09532): first letters of words are here super-classes of images (a category), whose sub-classes
(a concept) may have latents that hold the super-class's direction too.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.measures.labelled import logistic
from vision_sae.measures.labelled.ranking import best, mean_difference, moments
from vision_sae.measures.labelled.rows import ImageRows, columns, live
from vision_sae.measures.labelled.scoring import best_thresholds, f1
from vision_sae.measures.labelled.task import Task, mean_of

PROBE = 0.6  # F1 on test that a super-class's probe must have
GAIN, MOST = 0.03, 10  # a further main latent must raise F1 by so much; so many at most
FULL_COSINE, COSINE, HOLDS, ABSORBERS = 0.025, 0.1, 0.4, 3


@dataclass(frozen=True)
class Absorption:
    """Shares of a super-class's test images, mean over the super-classes with a usable probe.

    full: all main latents are off and one other holds 0.4 of the projection on the probe or more.
    fraction: the share of the projection that up to three others hold. by_class: fraction of each.
    left_out: super-classes without a usable probe, and why.
    """

    full: float
    fraction: float
    by_class: dict[str, float]
    left_out: dict[str, str]
    reason: str = ""


def absorption(rows: ImageRows, task: Task, factor: str, b_dec: Float[Tensor, " d"]) -> Absorption:
    """Per image, with contributions c_i = f_i cos(W_i, p) |W_i| to the unit probe direction p:

    main = sum of c over the main latents, total = (x - b_dec) . p, others = sum of the three
    largest c with cos(W_i, p) >= .1. Fraction: 0 if main >= total or others < .4 total; 1 if
    main <= 0; else a / (a + main) with a = min(others, total - main). Full: no main latent is
    active, total >= 0, and the latent of largest c (cos >= .025) has c >= .4 total.
    """
    alive = live(rows.codes)
    if not len(alive):
        return Absorption(math.nan, math.nan, {}, {}, "no latent fires")
    some = task.only(task.columns(factor))
    probe = logistic.fit(rows.x, some.members, some.train)
    odds = probe(rows.x)
    thresholds = best_thresholds(odds[some.train], some.members[some.train])
    good = f1(odds[some.test] >= thresholds, some.members[some.test])
    full, fraction = {}, {}
    left_out = {}
    for i, (_, name) in enumerate(some.names):
        if not good[i] >= PROBE:
            left_out[name] = f"the probe's F1 is {float(good[i]):.2f}, {PROBE} is needed"
            continue
        images = (some.test & some.members[:, i]).nonzero()[:, 0]
        direction = probe.weight[:, i] / probe.weight[:, i].norm()
        main = main_latents(rows, some.only([i]))
        parts = _parts(rows, images, direction, main, (rows.x[images] - b_dec) @ direction)
        full[name], fraction[name] = (float(p.double().mean()) for p in parts)
    if not fraction:
        return Absorption(math.nan, math.nan, {}, left_out, f"no {factor} has a usable probe")
    of_full, of_fraction = (mean_of(torch.tensor(list(d.values()))) for d in (full, fraction))
    return Absorption(of_full, of_fraction, fraction, left_out)


def main_latents(rows: ImageRows, one: Task) -> Int[Tensor, " k"]:
    """The latents that represent a value: the k-th counts while it raises F1 on train by .03.

    In the order of mean difference, of a logistic regression on the first k (one value's task).
    """
    difference = mean_difference(moments(rows.codes, one.members, one.train))
    order = best(difference, MOST)[0]
    x, truth = columns(rows.codes, order), one.members[:, 0]
    reached, k = 0.0, 1
    for size in range(1, len(order) + 1):
        odds = logistic.fit_few(x[:, :size], truth, one.train)(x[:, :size])[one.train]
        score = f1(odds >= best_thresholds(odds, truth[one.train, None]), truth[one.train, None])
        if size > 1 and float(score) - reached <= GAIN:
            break
        reached, k = float(score), size
    return order[:k]


def _parts(
    rows: ImageRows, images: Int[Tensor, " m"], direction: Tensor, main: Tensor, total: Tensor
) -> tuple[Tensor, Float[Tensor, " m"]]:
    """Which images are absorbed in full, and the fraction of each."""
    along = rows.W_dec @ direction
    cosine = along / rows.W_dec.norm(dim=1).clamp(min=1e-12)
    is_main = torch.zeros(len(along), dtype=torch.bool)
    is_main[main] = True
    share = torch.zeros(len(images), 3)  # main, the largest other, the three largest others
    silent = torch.ones(len(images), dtype=torch.bool)
    offsets, codes = rows.mean.offsets, rows.mean
    for i, image in enumerate(images.tolist()):
        part = slice(int(offsets[image]), int(offsets[image + 1]))
        latents, values = codes.indices[part], codes.values[part].float()
        c, mine = values * along[latents], is_main[latents]
        silent[i] = not bool((values[mine] != 0).any())
        share[i, 0] = c[mine].sum()
        share[i, 1] = _largest(c[~mine & (cosine[latents] >= FULL_COSINE)], 1)
        share[i, 2] = _largest(c[~mine & (cosine[latents] >= COSINE)], ABSORBERS)
    own, largest, others = share.unbind(1)
    full = silent & (total >= 0) & (largest > 0) & (largest >= HOLDS * total)
    a = torch.minimum(others, total - own)
    fraction = torch.where(own <= 0, torch.ones_like(own), a / (a + own))
    none = (own >= total) | (others < HOLDS * total) | (others <= 0)
    return full, torch.where(none, 0.0, fraction)


def _largest(c: Float[Tensor, " e"], count: int) -> Float[Tensor, ""]:
    """The sum of the largest ones."""
    return c.sort(descending=True).values[:count].clamp(min=0).sum()
