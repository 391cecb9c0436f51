"""How well each latent alone tells each value apart: closed forms over sparse codes."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vision_sae.sparse.codes import Codes
from vision_sae.sparse.kernels import scatter_sum


@dataclass(frozen=True)
class Moments:
    """Sums of codes over some rows; `inside` over those of each value, in float64."""

    inside: Float[Tensor, "s v"]
    total: Float[Tensor, " s"]
    squares: Float[Tensor, " s"]
    counts: Float[Tensor, " v"]
    rows: int


def moments(codes: Codes, members: Bool[Tensor, "n v"], of: Bool[Tensor, " n"]) -> Moments:
    """Over the rows `of`. One sparse product; a latent that is off costs nothing."""
    columns = torch.cat([members & of[:, None], of[:, None]], 1).double()
    values = codes.values.double()
    sums = scatter_sum(values, codes.support, columns)
    squares = scatter_sum(values.square(), codes.support, columns[:, -1:])
    return Moments(sums[:, :-1], sums[:, -1], squares[:, 0], columns[:, :-1].sum(0), int(of.sum()))


def mean_difference(m: Moments) -> Float[Tensor, "s v"]:
    """Mean code of the rows that have a value, less the mean of the others (C16, SAEBench)."""
    others = (m.total[:, None] - m.inside) / (m.rows - m.counts).clamp(min=1)
    return m.inside / m.counts.clamp(min=1) - others


def f_statistic(m: Moments) -> Float[Tensor, "s v"]:
    """One-way ANOVA of two groups, a value's rows and the others: f_classif of each column.

    F = between / (within / (n - 2)); -inf where a latent is constant.
    """
    rest = m.rows - m.counts
    between = (
        m.inside.square() / m.counts.clamp(min=1)
        + (m.total[:, None] - m.inside).square() / rest.clamp(min=1)
        - (m.total.square() / m.rows)[:, None]
    )
    spread = (m.squares - m.total.square() / m.rows)[:, None]
    return _ratio(between, spread, 1, m.rows - 2)


def f_of_classes(m: Moments) -> Float[Tensor, " s"]:
    """ANOVA of all groups at once, for values of which every row has just one."""
    between = (m.inside.square() / m.counts.clamp(min=1)).sum(1) - m.total.square() / m.rows
    groups = int((m.counts > 0).sum())
    return _ratio(between, m.squares - m.total.square() / m.rows, groups - 1, m.rows - groups)


def _ratio(between: Tensor, spread: Tensor, over: int, under: int) -> Tensor:
    """F; +inf where a latent is constant within every group, -inf where it is constant."""
    tiny = 1e-12 * spread
    within = spread - between
    f = (between / max(1, over)) / (within.clamp(min=0) / max(1, under))
    f = torch.where(within <= tiny, torch.inf, f)
    return torch.where((spread <= 0).expand_as(f), -torch.inf, f)


def best(scores: Float[Tensor, "s v"], k: int) -> Int[Tensor, "v k"]:
    """The k latents of largest score for each value, largest first; equal ones by number."""
    order = scores.T.argsort(dim=1, descending=True, stable=True)
    return order[:, :k]
