"""Is a concept in few latents, and in them alone? Ablations judged by probes (SAEBench).

Karvonen et al. 2025 (arXiv 2503.09532): targeted probe perturbation, and spurious correlation
removal (SHIFT, Marks et al. 2024, arXiv 2403.19647), with factors of images as classes. Ablating
latents takes their mean code times atom off x; on a probe w that is f_i (W_i . w), so no image is
encoded again.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vision_sae.measures.labelled import logistic
from vision_sae.measures.labelled.ranking import mean_difference, moments
from vision_sae.measures.labelled.rows import ImageRows, columns, live
from vision_sae.measures.labelled.scoring import balanced
from vision_sae.measures.labelled.task import Task

NS = (2, 5, 10, 20, 50)  # latents that are ablated
SMALL = 1e-3
LEAST = 40  # images in each of the four cells of a spurious pair


@dataclass(frozen=True)
class Targeted:
    """A score for each n of latents, and the control's: as many live latents at random.

    n: classes of TPP, pairs of SCR. NaN, with a reason, where it is not defined.
    """

    score: dict[int, float]
    random: dict[int, float]
    n: int
    reason: str = ""


def tpp(rows: ImageRows, task: Task, factor: str, *, seed: int = 0) -> Targeted:
    """mean_i (drop_i on probe i - mean over j != i of drop_i on probe j), of balanced accuracy.

    For class i the N latents of largest positive effect max(0, mean f on i - mean f off i) .
    (W . w_i) on train are set to 0 on test; drop is accuracy before less after. Probes are
    class-balanced logistic regressions on x, one per value of the factor.
    """
    classes = task.columns(factor)
    alive = live(rows.codes)
    why = "no latent fires" if not len(alive) else ""
    why = why or (f"{factor} has one value; two are needed" if len(classes) < 2 else "")
    if why:
        return _undefined(why, len(classes))
    some = task.only(classes)
    probe = logistic.fit(rows.x, some.members, some.train)
    effect = mean_difference(moments(rows.mean, some.members, some.train)).clamp(min=0).float()
    effect = effect * (rows.W_dec @ probe.weight)
    order = effect.argsort(dim=0, descending=True, stable=True)
    chosen = {n: [_positive(order[:n, i], effect[:, i]) for i in range(len(classes))] for n in NS}
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: [_some(alive, len(one), generator) for one in sets] for n, sets in chosen.items()}
    scores = [
        {n: _perturbed(rows, some, probe, sets) for n, sets in by_n.items()}
        for by_n in (chosen, drawn)
    ]
    return Targeted(scores[0], scores[1], len(classes))


def _positive(latents: Int[Tensor, " n"], effect: Float[Tensor, " s"]) -> Int[Tensor, " m"]:
    return latents[effect[latents] > 0]


def _some(alive: Int[Tensor, " l"], n: int, generator: torch.Generator) -> Int[Tensor, " m"]:
    return alive[torch.randperm(len(alive), generator=generator)[:n]]


def _perturbed(rows: ImageRows, task: Task, probe: logistic.Probe, sets: list[Tensor]) -> float:
    odds, truth = probe(rows.x)[task.test], task.members[task.test]
    before = balanced(odds > 0, truth)
    drops = []
    for latents in sets:
        moved = _contribution(rows, latents, probe.weight)[task.test]
        drops.append(before - balanced(odds - moved > 0, truth))
    drop = torch.stack(drops).double()
    own = drop.diagonal()
    others = (drop.sum(1) - own) / (len(drop) - 1)
    return float((own - others).mean())


def _contribution(
    rows: ImageRows, latents: Int[Tensor, " m"], weight: Float[Tensor, "d v"]
) -> Float[Tensor, "n v"]:
    """What some latents add to the log odds of probes."""
    return columns(rows.mean, latents) @ (rows.W_dec[latents] @ weight)


@dataclass(frozen=True)
class Pair:
    """A target and a spurious property, each of two values: columns of the task."""

    target: tuple[int, int]
    spurious: tuple[int, int]


def pairs(task: Task, target: str, spurious: str, *, most: int = 10) -> list[Pair]:
    """The pairs of values of two factors of which the four combinations are most frequent."""
    cells = task.members[task.train].double()
    together = cells.T @ cells
    found = []
    for a in combinations(task.columns(target), 2):
        for b in combinations(task.columns(spurious), 2):
            size = float(together[list(a)][:, list(b)].min())
            if size >= LEAST:
                found.append((-size, a, b))
    return [Pair(a, b) for _, a, b in sorted(found)[:most]]


def scr(rows: ImageRows, task: Task, target: str, spurious: str, *, seed: int = 0) -> Targeted:
    """mean over pairs of (acc after ablation - acc) / (acc of a clean probe - acc).

    A probe for the target is fitted where the target and the spurious property always go together,
    and asked for the target on balanced test images. Ablated are the N latents of largest
    |(mean f on - mean f off) (W . w)| for a probe w of the spurious property. The clean probe is
    fitted on the balanced train images. A pair whose clean probe is no better by .001 has no score
    (SAEBench counts it 0). Of the two roles that a pair's properties can have, as there, the one
    with the lower accuracy counts.
    """
    alive = live(rows.codes)
    if not len(alive):
        return _undefined("no latent fires", 0)
    found = []
    for pair in pairs(task, target, spurious):
        roles = [pair, Pair(pair.spurious, pair.target)]
        results = [_removal(rows, task, role, alive, seed) for role in roles]
        defined = [r for r in results if r is not None]
        if defined:
            found.append(min(defined, key=lambda r: r.accuracy))
    if not found:
        return _undefined(
            f"no two values each of {target} and {spurious} have {LEAST} train images in all four "
            "combinations and a probe that is misled", 0
        )  # fmt: skip
    score, random = (
        {n: sum(getattr(r, side)[n] for r in found) / len(found) for n in NS}
        for side in ("score", "random")
    )
    return Targeted(score, random, len(found))


@dataclass(frozen=True)
class _Removal:
    accuracy: float
    score: dict[int, float]
    random: dict[int, float]


def _removal(rows: ImageRows, task: Task, pair: Pair, alive: Tensor, seed: int) -> _Removal | None:
    a, other_a = (task.members[:, i] for i in pair.target)
    b, other_b = (task.members[:, i] for i in pair.spurious)
    inside = (a | other_a) & (b | other_b)
    together = (a & b) | (other_a & other_b)
    even = _balanced(torch.stack([a & b, a & other_b, other_a & b, other_a & other_b]), task)
    train, test = even & task.train, even & task.test
    misled = logistic.fit(rows.x, a[:, None], inside & together & task.train)
    clean = logistic.fit(rows.x, a[:, None], train)
    odds = misled(rows.x)[test, 0]
    before, best = _accuracy(odds, a[test]), _accuracy(clean(rows.x)[test, 0], a[test])
    if not best - before > SMALL:
        return None
    spoiler = logistic.fit(rows.x, b[:, None], train)
    difference = mean_difference(moments(rows.mean, b[:, None], train))[:, 0].float()
    effect = (difference * (rows.W_dec @ spoiler.weight[:, 0])).abs()
    order = effect.argsort(descending=True, stable=True)
    generator = torch.Generator().manual_seed(seed)
    mixed = _some(alive, max(NS), generator)

    def score(latents: Tensor) -> float:
        moved = _contribution(rows, latents, misled.weight)[test, 0]
        return (_accuracy(odds - moved, a[test]) - before) / (best - before)

    return _Removal(before, {n: score(order[:n]) for n in NS}, {n: score(mixed[:n]) for n in NS})


def _balanced(cells: Bool[Tensor, "4 n"], task: Task) -> Bool[Tensor, " n"]:
    """The first images of each cell, as many as the smallest has, on either side of the split."""
    kept = torch.zeros(cells.shape[1], dtype=torch.bool)
    for side in (task.train, task.test):
        here = cells & side
        size = int(here.sum(1).min())
        kept |= (here & (here.cumsum(1) <= size)).any(0)
    return kept


def _accuracy(odds: Float[Tensor, " m"], truth: Bool[Tensor, " m"]) -> float:
    return float(((odds > 0) == truth).double().mean()) if len(odds) else math.nan


def _undefined(reason: str, n: int) -> Targeted:
    nan = dict.fromkeys(NS, math.nan)
    return Targeted(nan, nan, n, reason)
