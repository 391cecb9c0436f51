"""How many bits the codes take: minimum description length (Ayonrinde et al. 2024)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.sparse.codes import Codes

BINS = (4, 6, 8, 12, 16, 32)
TOLERANCE = 0.01


@dataclass(frozen=True)
class Description:
    """With codes rounded to one number of bins: bits per row, and the error of decoding them."""

    bins: int
    bits: float
    error: float  # sqrt(mean squared error) / d


@dataclass(frozen=True)
class MDL:
    """The shortest description that is precise enough, and the whole trade-off.

    bits: per row; NaN with a reason where no number of bins is precise enough.
    """

    bits: float
    bits_per_dimension: float
    bins: int
    curve: tuple[Description, ...]
    reason: str = ""


def mdl(
    codes: Codes,
    x: Float[Tensor, "n d"],
    decode: Callable[[Codes], Float[Tensor, "n d"]],
    *,
    tolerance: float = TOLERANCE,
) -> MDL:
    """Bits per row = sum_i H_b(p_i) + p_i H_i: which latents are on, and how strongly.

    p_i: the share of rows on which latent i is active, H_b the binary entropy; H_i the entropy of
    its active values in equal bins over [0, its largest |value|]. Of the numbers of bins whose
    midpoints decode to x with sqrt(MSE) / d below the tolerance, the one of fewest bits.

    "Interpretability as Compression" (arXiv 2410.11179) in SAEBench's form; its code also counts
    the zeros in H_i, and takes 100 for the largest value at least, which bins small codes away.
    """
    codes = codes.without_zeros()
    n, d = x.shape
    top = torch.zeros(codes.width).scatter_reduce(
        0, codes.indices, codes.values.abs().float(), "amax"
    )
    curve = []
    for bins in BINS:
        level = (codes.values.abs().float() / codes.per_entry(top) * bins).ceil().clamp(1, bins)
        middle = (level - 0.5) / bins * codes.per_entry(top) * codes.values.sign()
        error = (decode(codes.map(lambda v, m=middle: m.to(v.dtype))) - x).square().mean()  # type: ignore[misc]
        bits = description_length(codes, level.long() - 1, bins)
        curve.append(Description(bins, bits, math.sqrt(float(error)) / d))
    good = [one for one in curve if one.error < tolerance]
    if not good:
        least = min(one.error for one in curve)
        why = f"the least error is {least:.3g} of {tolerance:g}: the SAE itself is not so precise"
        return MDL(math.nan, math.nan, 0, tuple(curve), why)
    best = min(good, key=lambda one: one.bits)
    return MDL(best.bits, best.bits / d, best.bins, tuple(curve))


def description_length(codes: Codes, level: Int[Tensor, " e"], bins: int) -> float:
    """Bits per row of active codes in bins 0 to bins - 1."""
    counts = torch.bincount(codes.indices * bins + level, minlength=codes.width * bins)
    counts = counts.view(codes.width, bins).double()
    p = counts.sum(1) / len(codes)
    within = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return float((_h(torch.stack([p, 1 - p], 1)) + p * _h(within)).sum())


def _h(p: Float[Tensor, "s c"]) -> Float[Tensor, " s"]:
    """Entropy in bits."""
    return -(p * p.clamp(min=1e-300).log2()).sum(1)
