"""Sparse codes: which latents are active in each row, and how strongly.

Shape key: n rows, s latents, e entries (row, latent) of which there are few.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ByLatent:
    """The same entries sorted by latent: `order` permutes them, `rows` is the row of each, and
    `start[i]` to `start[i + 1]` are the entries of latent i."""

    order: Int[Tensor, " e"]
    rows: Int[Tensor, " e"]
    start: Int[Tensor, " s_plus_1"]


@dataclass(frozen=True, eq=False)
class Support:
    """Where codes may differ from zero: row r holds entries `offsets[r]` to `offsets[r + 1]`.

    `indices` is the latent of each entry, `width` the number of latents. With `row_gradients`,
    gradients of matrices that are read through it cover only rows of latents that occur.
    """

    indices: Int[Tensor, " e"]
    offsets: Int[Tensor, " n_plus_1"]
    width: int
    row_gradients: bool = False

    @classmethod
    def even(cls, indices: Int[Tensor, "n k"], width: int) -> "Support":
        """The same number of entries in each row."""
        n, k = indices.shape
        return cls(indices.flatten(), torch.arange(n + 1, device=indices.device) * k, width)

    @classmethod
    def of_rows(
        cls, rows: Int[Tensor, " e"], indices: Int[Tensor, " e"], n: int, width: int
    ) -> "Support":
        """From the row of each entry, in ascending order."""
        offsets = torch.searchsorted(rows, torch.arange(n + 1, device=rows.device))
        support = cls(indices, offsets, width)
        vars(support)["rows"] = rows  # known already: fills the cached property
        return support

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def rows(self) -> Int[Tensor, " e"]:
        """The row of each entry."""
        numbers = torch.arange(len(self), device=self.offsets.device)
        return numbers.repeat_interleave(self.offsets.diff(), output_size=len(self.indices))

    @cached_property
    def by_latent(self) -> ByLatent:
        # int32 keys sort about twice as fast; latents stay far below 2**31
        latent, order = self.indices.to(torch.int32).sort(stable=True)
        bounds = torch.arange(self.width + 1, device=latent.device, dtype=torch.int32)
        return ByLatent(order, self.rows[order], torch.searchsorted(latent, bounds))

    def at(self, entries: Int[Tensor, " c"]) -> "Support":
        """Some entries only, by number, in ascending order."""
        return Support.of_rows(self.rows[entries], self.indices[entries], len(self), self.width)


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of n rows over `width` latents; an entry is active when its value is not 0."""

    values: Float[Tensor, " e"]
    support: Support

    @classmethod
    def even(cls, values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], width: int) -> "Codes":
        """The same number of entries in each row, padded with values 0."""
        return cls(values.flatten(), Support.even(indices, width))

    @classmethod
    def of_dense(cls, dense: Float[Tensor, "n s"]) -> "Codes":
        rows, indices = dense.detach().nonzero().unbind(1)
        support = Support.of_rows(rows, indices, *dense.shape)
        return cls(dense[rows, indices], support)

    def __len__(self) -> int:
        return len(self.support)

    @property
    def indices(self) -> Int[Tensor, " e"]:
        return self.support.indices

    @property
    def offsets(self) -> Int[Tensor, " n_plus_1"]:
        return self.support.offsets

    @property
    def rows(self) -> Int[Tensor, " e"]:
        return self.support.rows

    @property
    def width(self) -> int:
        return self.support.width

    @property
    def active(self) -> Bool[Tensor, " e"]:
        return self.values != 0

    @property
    def l0(self) -> Int[Tensor, " n"]:
        """The number of active latents of each row."""
        return torch.bincount(self.rows[self.active], minlength=len(self))

    def to_dense(self) -> Float[Tensor, "n s"]:
        dense = self.values.new_zeros(len(self), self.width)
        return dense.index_put((self.rows, self.indices), self.values, accumulate=True)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Codes":
        """Other values on the same support; its sort is shared."""
        return Codes(change(self.values), self.support)

    def without_zeros(self) -> "Codes":
        """The active entries only."""
        active = self.active.nonzero()[:, 0]
        if len(active) == len(self.values):
            return self
        return Codes(self.values[active], self.support.at(active))

    def rows_at(self, part: slice) -> "Codes":
        """The codes of consecutive rows; views, nothing is copied."""
        first, last, _ = part.indices(len(self))
        offsets = self.offsets[first : max(first, last) + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        support = Support(self.indices[entries], offsets - offsets[0], self.width)
        return Codes(self.values[entries], support)

    @classmethod
    def joined(cls, parts: Sequence["Codes"]) -> "Codes":
        """The codes of rows that follow each other, at least one part."""
        counts = torch.cat([part.offsets.diff() for part in parts])
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        indices = torch.cat([part.indices for part in parts])
        values = torch.cat([part.values for part in parts])
        return cls(values, Support(indices, offsets, parts[0].width))

    def merged(self) -> "Codes":
        """Entries at the same place added up."""
        place = self.rows * self.width + self.indices
        unique, inverse = place.unique(return_inverse=True)
        if len(unique) == len(place):
            return self
        values = self.values.new_zeros(len(unique)).index_add(0, inverse, self.values)
        rows = unique.div(self.width, rounding_mode="floor")
        support = Support.of_rows(rows, unique - rows * self.width, len(self), self.width)
        return Codes(values, support)

    def per_entry(self, latents: Float[Tensor, " s"]) -> Float[Tensor, " e"]:
        """A number of each latent, at each entry."""
        return latents[self.indices]

    def fired(self) -> Bool[Tensor, " s"]:
        """Which latents are active in any row."""
        fired = torch.zeros(self.width, dtype=torch.bool, device=self.indices.device)
        fired[self.indices[self.active]] = True
        return fired


@dataclass(frozen=True, eq=False)
class DenseCodes:
    """Codes as a matrix, for training steps in which most latents are active."""

    values: Float[Tensor, "n s"]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def width(self) -> int:
        return self.values.shape[1]

    @property
    def l0(self) -> Int[Tensor, " n"]:
        return (self.values != 0).sum(1)

    def map(self, change: Callable[[Tensor], Tensor]) -> "DenseCodes":
        return DenseCodes(change(self.values))

    def per_entry(self, latents: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        return latents

    def fired(self) -> Bool[Tensor, " s"]:
        return (self.values != 0).any(0)

    def sparse(self) -> Codes:
        return Codes.of_dense(self.values)


AnyCodes = Codes | DenseCodes
