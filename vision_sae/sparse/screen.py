"""The k largest of each row, exactly, from a low-precision product and a few exact numbers.

A bfloat16 product costs a fraction of a float32 one where the hardware has matrix units for it
(AMX, tensor cores). Its largest entries, k and a margin, are recomputed in float32, and the k
largest of those are the answer for every row whose certificate holds. With x' and w' the rounded
vectors, |x.w - x'.w'| <= |x - x'| |w| + |x'| |w - w'| (Cauchy-Schwarz): a latent that was not
recomputed cannot beat the k-th exact one if its bfloat16 number is lower by that much and by the
rounding of the number itself. Rows without a certificate are done again in float32.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vision_sae.sparse import kernels, select
from vision_sae.sparse.codes import Support
from vision_sae.sparse.select import Product

SUMS = 2.0**-11  # relative error, at most, of float32 sums of up to 4,096 products


class Screened(NamedTuple):
    """z and latents [n k], and which rows needed the full product."""

    z: Float[Tensor, "n k"]
    latents: Int[Tensor, "n k"]
    redone: Bool[Tensor, " n"]


def top(product: Product, k: int, *, margin: int | None = None) -> Screened:
    """As select.top, by way of bfloat16; 2k latents more than needed are looked at by default."""
    few = min(k + (2 * k if margin is None else margin), len(product.weight))
    low = product.lower(torch.bfloat16)
    rough, latents = select.top(low, few)
    z, chosen = _exact(product, latents).topk(k, dim=1, sorted=False)
    redone = rough.amin(1) + _error(product, low, rough.amin(1)) >= z.amin(1)
    if few == len(product.weight):
        redone = torch.zeros_like(redone)
    latents = latents.gather(1, chosen)
    again = redone.nonzero()[:, 0]
    if len(again):
        z[again], latents[again] = select.top(product.at(again), k)
    return Screened(z, latents, redone)


def _exact(product: Product, latents: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    support = Support.even(latents, len(product.weight))
    z = kernels.entry_dots(product.x, product.weight, support) + product.bias[support.indices]
    return z.view(latents.shape)


def _error(product: Product, low: Product, rough: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """How far a number of the low product that is at most `rough` can be below the exact one."""
    x, weight = _rounding(product.x, low.x), _rounding(product.weight, low.weight)
    inputs = x.lost * weight.length.amax() + x.length * weight.lost.amax()
    sums = SUMS * x.length * weight.length.amax()
    bias = product.bias.abs().amax()
    results = 2.0**-8 * (2 * rough.abs() + 3 * bias)  # of the number, before and after its bias
    error: Tensor = inputs + sums + results
    return error


class _Rounded(NamedTuple):
    length: Float[Tensor, " r"]  # of each rounded row, or of the row, whichever is larger
    lost: Float[Tensor, " r"]  # length of what rounding took


def _rounding(exact: Float[Tensor, "r d"], low: Float[Tensor, "r d"]) -> _Rounded:
    parts = zip(exact.split(1024), low.split(1024), strict=True)  # small enough for a cache
    found = [(a.norm(dim=1), (a - b.float()).norm(dim=1)) for a, b in parts]
    length, lost = (torch.cat(side) for side in zip(*found, strict=True))
    return _Rounded(length + lost, lost)
