"""Sparse codes: which latents are active in each row, and how strongly."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ByLatent:
    """The same entries sorted by latent: a CSR structure whose rows are latents.

    `order` permutes the flattened entries, `row` is the code row of each, `start[i]` to
    `start[i + 1]` are the entries of latent i.
    """

    order: Int[Tensor, " e"]
    row: Int[Tensor, " e"]
    start: Int[Tensor, " s_plus_1"]


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of n rows over `width` latents, at most k active in each.

    A row with fewer than k active latents is padded with values 0 (at any index); an entry is
    active when its value is positive.
    """

    values: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]
    width: int

    def to_dense(self) -> Float[Tensor, "n s"]:
        dense = self.values.new_zeros(len(self.values), self.width)
        return dense.scatter_add(1, self.indices, self.values)

    @cached_property
    def by_latent(self) -> ByLatent:
        return sort_by_latent(self.indices, self.width)

    def with_values(self, values: Float[Tensor, "n k"]) -> "Codes":
        """The same support with other values; the sort is shared."""
        other = Codes(values, self.indices, self.width)
        object.__setattr__(other, "by_latent", self.by_latent)
        return other

    @property
    def l0(self) -> Int[Tensor, " n"]:
        """The number of active latents of each row."""
        return (self.values > 0).sum(1)


def sort_by_latent(indices: Int[Tensor, "n k"], width: int) -> ByLatent:
    flat = indices.flatten()
    # int32 keys sort about twice as fast; latents and entries stay far below 2**31
    latent, order = flat.to(torch.int32).sort(stable=True)
    bounds = torch.arange(width + 1, device=flat.device, dtype=torch.int32)
    start = torch.searchsorted(latent, bounds)
    return ByLatent(order, order // indices.shape[1], start)
