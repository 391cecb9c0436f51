"""Are the known factors among the latents? Coverage and board reconstruction (Karvonen et al.).

"Measuring Progress in Dictionary Learning for Language Model Interpretability with Board Game
Models" (2024, arXiv 2408.00113), with the factor values of images in place of board properties.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vision_sae.measures.labelled import scoring
from vision_sae.measures.labelled.rows import live
from vision_sae.measures.labelled.task import Task, mean_of
from vision_sae.sparse.codes import Codes, Support
from vision_sae.sparse.kernels import gather_sum

STEPS = 10  # thresholds: 0, 1/10, ... 9/10 of a latent's largest train value, and the largest
CELLS = 2**24  # counts held at a time: 64 MB


@dataclass(frozen=True)
class Coverage:
    """The best single latent of each value, chosen on train, and its F1 on test.

    `random` is the control: the F1 on test of live latents drawn at random, each at its own best
    threshold, mean over draws. NaN, with a `reason`, when no latent fires.
    """

    latent: Int[Tensor, " v"]
    threshold: Float[Tensor, " v"]
    f1: Float[Tensor, " v"]
    random: Float[Tensor, " v"]
    reason: str = ""

    @property
    def coverage(self) -> float:
        """Mean over values of the largest F1 over latents and thresholds."""
        return mean_of(self.f1)

    @property
    def control(self) -> float:
        return mean_of(self.random)


def coverage(codes: Codes, task: Task, *, draws: int = 10, seed: int = 0) -> Coverage:
    """coverage = mean over values g of max over (latent i, threshold t) of F1(f_i > t m_i, g).

    t is 0, 0.1, ... 1 (at 1 a latent fires where it has its largest value m_i of train). The
    paper's maximum is over the images that it is told of; here it is chosen on others.
    """
    v = len(task.names)
    alive = live(codes)
    if not len(alive):
        nan = torch.full((v,), math.nan)
        return Coverage(torch.full((v,), -1), nan, nan, nan, "no latent fires")
    top = _largest(codes, task.train)
    level = _levels(codes, top)
    found, step = _best_f1(codes, task, level)
    latent = found.argmax(0)
    threshold = step[latent, torch.arange(v)] * top[latent] / STEPS
    chosen = torch.randint(len(alive), (draws, v), generator=torch.Generator().manual_seed(seed))
    drawn = torch.stack([_held_out_f1(codes, task, alive[row], step, level) for row in chosen])
    f1 = _held_out_f1(codes, task, latent, step, level)
    return Coverage(latent, threshold, f1, drawn.mean(0))


def train_f1(codes: Codes, task: Task) -> Float[Tensor, "s v"]:
    """Each latent's F1 for each value on train, at its best threshold."""
    return _best_f1(codes, task, _levels(codes, _largest(codes, task.train)))[0]


def _largest(codes: Codes, of: Bool[Tensor, " n"]) -> Float[Tensor, " s"]:
    """Each latent's largest value over some rows."""
    values = codes.values.float() * of[codes.rows]
    return torch.zeros(codes.width).scatter_reduce(0, codes.indices, values, "amax")


def _best_f1(
    codes: Codes, task: Task, level: Int[Tensor, " e"]
) -> tuple[Float[Tensor, "s v"], Int[Tensor, "s v"]]:
    """The largest train F1 of each latent for each value, and at which threshold."""
    truth = task.members[task.train].sum(0)
    best = torch.zeros(codes.width, len(task.names))
    step = torch.zeros(best.shape, dtype=torch.int64)
    for part, hits, fired in _counts(codes, task, level):
        f1 = 2 * hits / (fired[:, :, None] + truth)
        best[part], step[part] = f1.max(1)
    return best, step


def _counts(
    codes: Codes, task: Task, level: Int[Tensor, " e"]
) -> Iterator[tuple[slice, Float[Tensor, "l t v"], Float[Tensor, "l t"]]]:
    """Some latents at a time: hits and firings on train at each of STEPS + 1 thresholds."""
    here = (codes.values > 0) & task.train[codes.rows]
    latent, level, rows = codes.indices[here], level[here], codes.rows[here]
    order = (latent * (STEPS + 1) + level).argsort()
    latent, level, rows = latent[order], level[order], rows[order]
    members = torch.cat([task.members, torch.ones(len(codes), 1, dtype=torch.bool)], 1).float()
    size = max(1, CELLS // ((STEPS + 1) * members.shape[1]))
    for first in range(0, codes.width, size):
        part = slice(first, min(first + size, codes.width))
        low, high = torch.searchsorted(latent, torch.tensor([part.start, part.stop])).tolist()
        place = (latent[low:high] - first) * (STEPS + 1) + level[low:high]
        cells = (part.stop - first) * (STEPS + 1)
        support = Support.of_rows(place, rows[low:high], cells, len(codes))
        counts = gather_sum(torch.ones(high - low), support, members)
        counts = counts.view(-1, STEPS + 1, members.shape[1])
        upto = counts.flip(1).cumsum(1).flip(1)  # fires at a threshold: at this level or above
        yield part, upto[:, :, :-1], upto[:, :, -1]


def _levels(codes: Codes, top: Float[Tensor, " s"]) -> Int[Tensor, " e"]:
    """The highest threshold that each entry passes: t < STEPS if f > t/STEPS m; STEPS if f >= m."""
    share = codes.values.float() / codes.per_entry(top).clamp(min=1e-30)
    level = (share * STEPS).ceil().sub(1).clamp(0, STEPS - 1)
    return torch.where(share >= 1, STEPS, level).long()


def _held_out_f1(
    codes: Codes, task: Task, latent: Int[Tensor, " v"], step: Tensor, level: Tensor
) -> Float[Tensor, " v"]:
    """F1 on test of one latent for each value, at its best train threshold."""
    by = codes.support.by_latent
    predicted = torch.zeros_like(task.members)
    for value, one in enumerate(latent.tolist()):
        part = by.order[int(by.start[one]) : int(by.start[one + 1])]
        fires = part[(level[part] >= step[one, value]) & (codes.values[part] > 0)]
        predicted[codes.rows[fires], value] = True
    return scoring.f1(predicted[task.test], task.members[task.test])


@dataclass(frozen=True)
class Board:
    """How much of an image's values can be read off the latents that fire.

    f1: mean over test images. step: the threshold, in tenths of a latent's largest value, chosen
    on train. classifiers: (latent, value) pairs of high precision. values: how many values have a
    classifier at all.
    """

    f1: float
    step: int
    classifiers: int
    values: int
    reason: str = ""


def board(codes: Codes, task: Task, *, precision: float = 0.95, least: int = 10) -> Board:
    """Predict all values of an image: the union of those of its firing classifiers.

    A latent is a classifier of a value when at the threshold it has that precision on train and
    fires on `least` train images or more. F1 of the predicted set of values to the true one, mean
    over images; of the thresholds (one for all latents) the best on train.
    """
    level = _levels(codes, _largest(codes, task.train))
    tables = _classifiers(codes, task, level, precision, least)
    if not bool(tables.any()):
        why = f"no latent has precision {precision} on {least} images for any value"
        return Board(math.nan, 0, 0, 0, why)
    scores = []
    for step, table in enumerate(tables):
        predicted = _union(codes, level >= step, table)
        parts = (task.train, task.test)
        scores.append([scoring.f1_of_images(predicted[p], task.members[p]) for p in parts])
    step = max(range(len(scores)), key=lambda t: scores[t][0])
    table = tables[step]
    return Board(scores[step][1], step, int(table.sum()), int(table.any(0).sum()))


def _classifiers(
    codes: Codes, task: Task, level: Int[Tensor, " e"], precision: float, least: int
) -> Bool[Tensor, "t s v"]:
    found = torch.zeros(STEPS + 1, codes.width, len(task.names), dtype=torch.bool)
    for part, hits, fired in _counts(codes, task, level):
        sure = (hits >= precision * fired[:, :, None]) & (fired[:, :, None] >= least)
        found[:, part] = sure.transpose(0, 1)
    return found


def _union(
    codes: Codes, passes: Bool[Tensor, " e"], table: Bool[Tensor, "s v"]
) -> Bool[Tensor, "n v"]:
    """The values of which a classifier fires."""
    useful = passes & (codes.values > 0) & table.any(1)[codes.indices]
    entries = useful.nonzero()[:, 0]
    some = codes.support.at(entries)
    return gather_sum(torch.ones(len(entries)), some, table.float()) > 0


def slow_best_f1(codes: Codes, task: Task) -> Float[Tensor, "s v"]:
    """The twin of the fast count: every latent, threshold and value in turn, on train."""
    dense = codes.to_dense()[task.train]
    truth = task.members[task.train]
    out = torch.zeros(codes.width, truth.shape[1])
    for i, column in enumerate(dense.T):
        m = float(column.max())
        for t in range(STEPS + 1):
            fires = (column > t / STEPS * m) if t < STEPS else (column >= m)
            fires = fires & (column > 0)
            f1 = scoring.f1(fires[:, None].expand_as(truth), truth)
            out[i] = torch.maximum(out[i], f1.nan_to_num())
    return out
