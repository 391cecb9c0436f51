"""Which pre-activations stay: the sparsity families, as pure functions [n s] -> Codes."""

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.codes import Codes


def topk(pre: Float[Tensor, "n s"], k: int, *, ordered: bool = False) -> Codes:
    """ReLU, then the k largest of each row (Gao et al. 2024, arXiv 2406.04093, eq. 2).

    `ordered` puts the largest first.
    """
    values, indices = pre.topk(k, dim=1, sorted=ordered)
    return Codes(values.relu(), indices, pre.shape[1])


def batch_topk(pre: Float[Tensor, "n s"], k: int) -> Codes:
    """ReLU, then the k*n largest of the whole batch (Bussmann et al. 2024, arXiv 2412.06410).

    Exact without sorting n*s entries: the winners are sought among each row's m largest, and m is
    doubled while any row has all its m candidates chosen.
    """
    n, s = pre.shape
    m = min(4 * k, s)
    while True:
        candidates = topk(pre, m, ordered=True)
        kept = min(n * k, candidates.values.numel())
        cut = candidates.values.flatten().topk(kept, sorted=False).values.min()
        chosen = candidates.values >= cut.clamp(min=torch.finfo(pre.dtype).tiny)
        if m == s or not bool(chosen.all(1).any()):
            return _drop(candidates, chosen)
        m = min(2 * m, s)


def threshold(pre: Float[Tensor, "n s"], theta: Float[Tensor, ""]) -> Codes:
    """Keep what exceeds theta, row by row: BatchTopK at inference."""
    above = pre > theta.clamp(min=0)
    most = max(1, int(above.sum(1).max())) if len(pre) else 1
    codes = topk(pre, most, ordered=True)
    return _drop(codes, codes.values > theta)


def _drop(codes: Codes, chosen: Tensor) -> Codes:
    """Zero what is not chosen (never before a chosen one) and cut the padding that no row needs."""
    most = max(1, int(chosen.sum(1).max())) if len(chosen) else 1
    return Codes((codes.values * chosen)[:, :most], codes.indices[:, :most], codes.width)
