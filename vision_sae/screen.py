"""The k largest of each row, exactly, from a low-precision product and a few exact numbers.

A bfloat16 product costs a fraction of a float32 one where the hardware has matrix units for it (AMX,
tensor cores). Its k + margin largest are recomputed in float32, and the k largest of those are the
answer for every row whose certificate holds: rounding x and w to bfloat16 moves a product by at most
2^-8 (1 + 2^-8) |x| |w| (Cauchy-Schwarz over the elementwise roundings of 2^-9 each), so a latent
that was not recomputed cannot beat the k-th exact one if its bfloat16 number is lower by that much
and by the rounding of the number itself. Rows without a certificate are done again in float32.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vision_sae import kernels, select
from vision_sae.codes import Support
from vision_sae.select import Product

ROUNDING = 2.0**-8 * (1 + 2.0**-7)  # of a product of two bfloat16-rounded vectors, and a little


class Screened(NamedTuple):
    """z and latents [n k], and which rows needed the full product."""

    z: Float[Tensor, "n k"]
    latents: Int[Tensor, "n k"]
    redone: Bool[Tensor, " n"]


def top(product: Product, k: int, *, margin: int | None = None) -> Screened:
    """As select.top, by way of bfloat16; 2k latents more than needed are looked at by default."""
    few = min(k + (2 * k if margin is None else margin), len(product.weight))
    rough, latents = select.top(product.lower(torch.bfloat16), few)
    z, chosen = _exact(product, latents).topk(k, dim=1, sorted=False)
    redone = ~_certain(product, rough, z.amin(1), few)
    latents = latents.gather(1, chosen)
    again = redone.nonzero()[:, 0]
    if len(again):
        z[again], latents[again] = select.top(product.at(again), k)
    return Screened(z, latents, redone)


def _exact(product: Product, latents: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    support = Support.even(latents, len(product.weight))
    z = kernels.entry_dots(product.x, product.weight, support) + product.bias[support.indices]
    return z.view(latents.shape)


def _certain(
    product: Product, rough: Float[Tensor, "n m"], kth: Float[Tensor, " n"], few: int
) -> Bool[Tensor, " n"]:
    """Whether no latent outside the candidates can be among the k largest."""
    if few == len(product.weight):
        return torch.ones_like(kth, dtype=torch.bool)
    longest, bias = product.weight.norm(dim=1).amax(), product.bias.abs().amax()
    least = rough.amin(1).float()
    inputs = ROUNDING * product.x.norm(dim=1) * longest
    results = 2.0**-8 * (least.abs() + 2 * bias)  # the rough number itself, and its bias
    certain: Tensor = least + inputs + results < kth
    return certain
