"""Does editing few latents change one factor and leave the others? (sparse control)

The second axis of Makelov, Lange & Nanda 2024 (arXiv 2405.08366): pairs of test images that differ
in one factor alone, and edits of the first one's code that shall make it read as the second.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.measures.factors import NOT_FACTORS
from vision_sae.measures.labelled.coverage import train_f1
from vision_sae.measures.labelled.ranking import moments
from vision_sae.measures.labelled.readout import Readout
from vision_sae.measures.labelled.rows import ImageRows, live
from vision_sae.measures.labelled.task import Task
from vision_sae.sparse.codes import Codes

PAIRS = 500  # of a factor, at most
LEAST = 10


@dataclass(frozen=True)
class Control:
    """Shares of the pairs, for edits of n latents on either side.

    aware: latents of largest F1 for the old and the new value. agnostic: those of the two codes'
    difference that come nearest to the other image. random: live latents at random, the control.
    kept: the share of other factors' classes that stay as they were, in aware edits. size: what an
    aware edit moves, sum |w_i| with w_i = df_i W_i . r / |r|^2, r the reconstruction less its
    mean. before and ceiling: the share that reads as the new value without an edit, and of the
    second images themselves. NaN, with a reason, for fewer than 10 pairs.
    """

    factor: str
    n: int
    pairs: int
    before: float
    aware: float
    agnostic: float
    random: float
    kept: float
    size: float
    ceiling: float
    reason: str = ""


def control(
    rows: ImageRows, reader: Readout, about: Sequence[dict[str, Any]], factor: str, n: int,
    *, seed: int = 0,
) -> Control:  # fmt: skip
    """Edits of n latents out and n in, on pairs that differ in `factor` alone.

    aware: the active ones among the n latents of largest train F1 for the old value go to 0, and
    the n of largest F1 for the new value go to their mean code over its train images.
    """
    task = reader.task
    first, second = pairs_of(about, task, factor, seed).unbind(1)
    if len(first) < LEAST:
        nan = math.nan
        why = f"{len(first)} pairs of test images differ in {factor} alone; {LEAST} are needed"
        return Control(factor, n, len(first), nan, nan, nan, nan, nan, nan, nan, why)
    truth, columns = task.classes(factor), task.columns(factor)
    old, new = truth[first], truth[second]
    table = _edits(rows, task, columns, n)
    drawn = _drawn(rows, len(columns), n, seed)
    aware = _aware(rows, first, old, new, table)
    edits = {
        "aware": aware,
        "agnostic": _agnostic(rows, first, second, n),
        "random": _aware(rows, first, old, new, drawn),
        "before": torch.zeros_like(aware),
        "ceiling": rows.x[second] - rows.x[first],
    }
    x = rows.x[first]
    hit = {k: _share(reader.classes(x + e, factor) == new) for k, e in edits.items()}
    return Control(
        factor, n, len(first), before=hit["before"], aware=hit["aware"], agnostic=hit["agnostic"],
        random=hit["random"], ceiling=hit["ceiling"], kept=_kept(reader, x, x + aware, factor),
        size=_size(rows, first, aware),
    )  # fmt: skip


def pairs_of(
    about: Sequence[dict[str, Any]], task: Task, factor: str, seed: int = 0
) -> Int[Tensor, "p 2"]:
    """Test images that differ in one factor alone: every other single value is the same."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    has = task.classes(factor) >= 0
    for i in (task.test & has).nonzero()[:, 0].tolist():
        rest = [
            (key, str(value))
            for key, value in sorted(about[i].items())
            if key not in NOT_FACTORS | {factor} and not isinstance(value, list)
        ]
        groups.setdefault(tuple(rest), []).append(i)
    truth = task.classes(factor)
    found = [
        (i, j) for group in groups.values() for i in group for j in group if truth[i] != truth[j]
    ]
    pairs = torch.tensor(found, dtype=torch.int64).view(-1, 2)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return pairs[order[:PAIRS]]


@dataclass(frozen=True)
class _Table:
    """For each value of the factor: its latents, and the code that each has on its images."""

    latents: Int[Tensor, "c n"]
    means: Float[Tensor, "c n"]


def _edits(rows: ImageRows, task: Task, columns: list[int], n: int) -> _Table:
    some = task.only(columns)
    latents = train_f1(rows.codes, some).T.argsort(dim=1, descending=True, stable=True)[:, :n]
    return _Table(latents, _means(rows.mean, some, latents))


def _means(codes: Codes, task: Task, latents: Int[Tensor, "c n"]) -> Float[Tensor, "c n"]:
    m = moments(codes, task.members, task.train)
    return (m.inside / m.counts.clamp(min=1)).T.gather(1, latents).float()


def _drawn(rows: ImageRows, values: int, n: int, seed: int) -> _Table:
    """Latents at random with their mean code over all images."""
    alive, generator = live(rows.codes), torch.Generator().manual_seed(seed)
    size = min(n, len(alive))
    picks = [alive[torch.randperm(len(alive), generator=generator)[:size]] for _ in range(values)]
    latents = torch.stack(picks)
    means = torch.zeros(rows.mean.width).index_add(
        0, rows.mean.indices, rows.mean.values.float()
    ) / len(rows.mean)
    return _Table(latents, means[latents])


def _aware(
    rows: ImageRows, first: Tensor, old: Tensor, new: Tensor, table: _Table
) -> Float[Tensor, "p d"]:
    """What is added to x: old latents off, then new latents at their mean."""
    dense = _dense(rows.mean, first)
    out = table.latents[old]
    value = dense.gather(1, out)
    take = -torch.einsum("pn,pnd->pd", value, rows.W_dec[out])
    dense = dense.scatter(1, out, 0.0)
    into = table.latents[new]
    change = table.means[new] - dense.gather(1, into)
    return take + torch.einsum("pn,pnd->pd", change, rows.W_dec[into])


def _agnostic(rows: ImageRows, first: Tensor, second: Tensor, n: int) -> Float[Tensor, "p d"]:
    """Greedily the n latents whose code differences bring x nearest to the second image."""
    difference = _dense(rows.mean, second) - _dense(rows.mean, first)
    goal = rows.x[second] - rows.x[first]
    done = torch.zeros_like(goal)
    for p in range(len(goal)):
        latents = difference[p].nonzero()[:, 0]
        steps = difference[p, latents, None] * rows.W_dec[latents]
        left, free = goal[p], torch.ones(len(latents), dtype=torch.bool)
        for _ in range(min(n, len(latents))):
            gain = (2 * steps @ left - steps.square().sum(1)).masked_fill(~free, -torch.inf)
            best = int(gain.argmax())
            if gain[best] <= 0:
                break
            left, free[best] = left - steps[best], False
        done[p] = goal[p] - left
    return done


def _dense(codes: Codes, chosen: Int[Tensor, " p"]) -> Float[Tensor, "p s"]:
    """Some rows of codes."""
    out = torch.zeros(len(chosen), codes.width)
    for i, row in enumerate(chosen.tolist()):
        part = slice(int(codes.offsets[row]), int(codes.offsets[row + 1]))
        out[i, codes.indices[part]] = codes.values[part].float()
    return out


def _kept(reader: Readout, before: Tensor, after: Tensor, factor: str) -> float:
    same = [
        _share(reader.classes(before, f) == reader.classes(after, f))
        for f in reader.factors
        if f != factor
    ]
    return sum(same) / len(same) if same else math.nan


def _size(rows: ImageRows, first: Tensor, edit: Float[Tensor, "p d"]) -> float:
    r = rows.x_hat[first] - rows.x_hat.mean(0)
    return float(((edit * r).sum(1).abs() / r.square().sum(1).clamp(min=1e-12)).mean())


def _share(right: Tensor) -> float:
    return float(right.double().mean())
