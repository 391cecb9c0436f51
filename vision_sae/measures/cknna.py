"""Do codes keep which rows are near to which? CKNNA."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.measures.case import Case
from vision_sae.measures.score import Scores, scored

NEIGHBOURS = 10
BATCH = 1024  # rows of a kernel
BATCHES = 4


def cknna(case: Case) -> Scores:
    """cknna: alignment of nearest neighbours between rows and their codes (MSAE).

    Huh et al. 2024 (arXiv 2405.07987): with linear kernels K = X X' and L = F F', both restricted
    to pairs that are among the 10 nearest neighbours in K and in L,
    cknna = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), HSIC being unbiased; in the last two each
    kernel is restricted to its own neighbours. The mean over at most 4 batches of 1,024 rows that
    are spread evenly over the sample. n: rows. Raises DataError for fewer than 12 rows.
    """
    rows, codes = case.test.rows, case.on_test.codes
    if len(rows) < NEIGHBOURS + 2:
        raise DataError(f"{len(rows)} rows; CKNNA needs at least {NEIGHBOURS + 2}")
    size = min(BATCH, len(rows))
    count = min(BATCHES, len(rows) // size)
    chosen = torch.linspace(0, len(rows) - 1, size * count).long().view(size, count).T
    found = []
    for part in chosen:
        f = torch.cat([codes.rows_at(slice(i, i + 1)).to_dense() for i in part.tolist()])
        found.append(alignment(rows[part], f))
    value = float(torch.tensor(found).double().mean())
    why = "the rows or their codes are all alike, so they have no neighbours to compare"
    return {"cknna": scored(value, why, n=size * count)}


def alignment(
    x: Float[Tensor, "n d"], f: Float[Tensor, "n s"], neighbours: int = NEIGHBOURS
) -> float:
    """CKNNA of two views of the same rows; NaN where a kernel does not vary."""
    K, L = (a.double() @ a.double().T for a in (x, f))
    near_K, near_L = nearest(K, neighbours), nearest(L, neighbours)
    both = near_K & near_L
    own = hsic(K * near_K, K * near_K) * hsic(L * near_L, L * near_L)
    return float(hsic(K * both, L * both) / own.sqrt()) if own > 0 else float("nan")


def nearest(K: Float[Tensor, "n n"], neighbours: int) -> Bool[Tensor, "n n"]:
    """For each row the others of largest kernel value."""
    others = K.clone().fill_diagonal_(-torch.inf)
    mask = torch.zeros_like(K, dtype=torch.bool)
    return mask.scatter_(1, others.topk(neighbours, dim=1).indices, True)


def hsic(K: Float[Tensor, "n n"], L: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """The unbiased estimate (Song et al. 2012, eq. 5); diagonals do not count."""
    n = len(K)
    K, L = K.clone().fill_diagonal_(0), L.clone().fill_diagonal_(0)
    trace = (K * L.T).sum()
    sums = K.sum() * L.sum() / ((n - 1) * (n - 2))
    crossed = 2 * (K.sum(0) @ L.sum(1)) / (n - 2)
    return (trace + sums - crossed) / (n * (n - 3))
