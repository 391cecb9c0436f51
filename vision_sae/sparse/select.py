"""Which pre-activations stay, without holding [n s]: the encoder's product is read tile by tile.

A tile is small enough to stay in a CPU's cache, which makes the selection after the product nearly
free, and what is kept from each tile is small, so that memory does not grow with the dictionary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vision_sae.parallel import ALONE, Group
from vision_sae.sparse.codes import Support

CPU_TILE = (512, 8192)  # 16 MB in float32: measured as fast as any on two cores
GPU_TILE = (4096, 2**16)


@dataclass(frozen=True)
class Product:
    """z = x @ weight.T + bias, never whole. With `norms`, latents compete by z times norm.

    Under autocast all of it is in the lower precision and `exact` is false: whoever needs exact
    numbers asks for the entries that were selected again.
    """

    x: Float[Tensor, "n d"]
    weight: Float[Tensor, "s d"]
    bias: Float[Tensor, " s"]
    norms: Float[Tensor, " s"] | None = None
    exact: bool = True
    tile: tuple[int, int] = CPU_TILE

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, bias: Tensor, norms: Tensor | None = None) -> "Product":
        """Precision from autocast, tiles from the device."""
        kind = x.device.type
        product = cls(x, weight, bias, norms, tile=CPU_TILE if kind == "cpu" else GPU_TILE)
        if torch.is_autocast_enabled(kind):
            return product.lower(torch.get_autocast_dtype(kind))
        return product

    def lower(self, dtype: torch.dtype) -> "Product":
        """The same in a lower precision."""
        norms = None if self.norms is None else self.norms.to(dtype)
        x, weight, bias = self.x.to(dtype), self.weight.to(dtype), self.bias.to(dtype)
        return Product(x, weight, bias, norms, False, self.tile)

    def at(self, rows: Int[Tensor, " r"]) -> "Product":
        """Some rows only."""
        return replace(self, x=self.x[rows])

    def first(self, latents: int | None) -> "Product":
        """The first latents only; None means all."""
        if latents is None:
            return self
        norms = None if self.norms is None else self.norms[:latents]
        return replace(self, weight=self.weight[:latents], bias=self.bias[:latents], norms=norms)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.x), len(self.weight)

    def row_tiles(self) -> Iterator[slice]:
        n, step = len(self.x), self.tile[0]
        return (slice(i, min(i + step, n)) for i in range(0, n, step))

    def tiles(self, rows: slice, *, whole: bool = False) -> Iterator[tuple[int, Tensor]]:
        """The first latent and the competing numbers of each tile of some rows.

        A tile is overwritten by the next. `whole` gives all latents in one.
        """
        s = len(self.weight)
        step = s if whole else self.tile[1]
        x, buffer = self.x[rows], self.x.new_empty(0)
        for first in range(0, s, step):
            last = min(first + step, s)
            buffer.resize_(len(x), last - first)
            yield first, self._tile(x, slice(first, last), buffer)

    def _tile(self, x: Tensor, latents: slice, buffer: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            z = torch.mm(x, self.weight[latents].T, out=buffer)
        z += self.bias[latents]
        return z if self.norms is None else z.mul_(self.norms[latents])

    def scores(self, z: Tensor, latents: Int[Tensor, "*e"]) -> Tensor:
        """What pre-activations compete with."""
        return z if self.norms is None else z * self.norms[latents]

    def pre_activations(self, scores: Tensor, latents: Int[Tensor, "*e"]) -> Tensor:
        """What competed, as pre-activations."""
        scores = scores if self.norms is None else scores / self.norms[latents]
        return scores if self.exact else scores.float()


def top(
    product: Product, k: int, *, magnitude: bool = False
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest of each row (by absolute value if asked), in no order, and their latents."""
    parts = [_top_of(product, rows, k, magnitude) for rows in product.row_tiles()]
    if not parts:
        return product.x.new_zeros(0, k), torch.zeros(0, k, dtype=torch.long)
    scores, latents = (torch.cat(side) for side in zip(*parts, strict=True))
    return product.pre_activations(scores, latents), latents


def _top_of(product: Product, rows: slice, k: int, magnitude: bool) -> tuple[Tensor, Tensor]:
    found = []
    for first, z in product.tiles(rows):
        scores, latents = _largest(z, min(k, z.shape[1]), magnitude)
        found.append((scores, latents + first))
    if len(found) == 1:
        return found[0]
    scores, latents = (torch.cat(side, dim=1) for side in zip(*found, strict=True))
    scores, chosen = _largest(scores, k, magnitude)
    return scores, latents.gather(1, chosen)


GROUP = 16  # latents that are compared first among themselves


def _largest(z: Tensor, k: int, magnitude: bool) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their places, in no order."""
    if magnitude:
        chosen = _largest(z.abs(), k, False)[1]
        return z.gather(1, chosen), chosen
    if z.shape[1] % GROUP or z.shape[1] < 4 * GROUP * k:
        values, chosen = z.topk(k, dim=1, sorted=False)
        return values, chosen
    return _largest_by_groups(z, k)


def _largest_by_groups(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same, nearly twice as fast: the k largest lie in the k groups of largest maximum."""
    groups = z.view(len(z), GROUP, -1)  # group j holds places j, j + size, j + 2 size, ...
    size = groups.shape[2]
    best = groups.amax(1).topk(k, dim=1, sorted=False).indices
    inside = groups.gather(2, best[:, None].expand(-1, GROUP, -1)).flatten(1)
    values, place = inside.topk(k, dim=1, sorted=False)
    member = place.div(k, rounding_mode="floor")
    return values, member * size + best.gather(1, place - member * k)


def above(product: Product, least: Float[Tensor, "..."]) -> tuple[Support, Float[Tensor, " e"]]:
    """All entries that compete with more than `least` (one number, or one per latent [s])."""
    found = [part for rows in product.row_tiles() for part in _above_of(product, rows, least)]
    n, s = product.shape
    if not found:
        nothing = torch.zeros(0, dtype=torch.long, device=product.x.device)
        return Support.of_rows(nothing, nothing, n, s), product.x.new_zeros(0)
    rows, latents, scores = (torch.cat(side) for side in zip(*found, strict=True))
    if s > product.tile[1]:  # tiles of latents come one after the other: back to row by row
        rows, order = rows.sort(stable=True)
        latents, scores = latents[order], scores[order]
    return Support.of_rows(rows, latents, n, s), product.pre_activations(scores, latents)


def _above_of(
    product: Product, rows: slice, least: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    mask = torch.empty(0, dtype=torch.bool, device=product.x.device)
    for first, z in product.tiles(rows):
        bound = least[first : first + z.shape[1]] if least.ndim else least
        mask = torch.gt(z, bound.to(z.dtype), out=mask.resize_(z.shape))
        flat = true_places(mask)
        row = flat.div(z.shape[1], rounding_mode="floor")
        yield row + rows.start, flat - row * z.shape[1] + first, z.view(-1)[flat]


def true_places(mask: Bool[Tensor, "..."]) -> Int[Tensor, " e"]:
    """Where a mask is true, counted through all its axes; numpy is six times faster on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.view(-1).nonzero()[:, 0]


def batch_top(
    product: Product, k: int, group: Group = ALONE
) -> tuple[Support, Float[Tensor, " e"]]:
    """The k*n largest positive entries of the whole batch and dictionary (all processes'), exactly.

    Entries equal to the smallest of them stay too. A bound below the cut is guessed from a sample
    of rows; everything above it is collected, and if that is too little the bound is lowered.
    """
    share = 1.25
    rows = group.rows.total(len(product.x))
    while True:
        guess = _bound(product, k * rows * share / group.size) if len(product.x) else None
        bound = group.least(guess)
        if bound is None:
            return above(product, product.bias.new_zeros(()))
        support, z = above(product, bound)
        found = group.total(len(z))
        if found >= k * rows or float(bound) <= 0:
            return _cut(product, support, z, k * rows, group)
        share *= 2


def _bound(product: Product, count: float, sample: int = 64) -> Float[Tensor, ""]:
    """A number that about `count` entries of the batch exceed, at least 0."""
    n, s = product.shape
    rows = torch.arange(0, n, max(1, n // sample), device=product.x.device)
    few = replace(product.at(rows), tile=(len(rows), s))
    z = next(few.tiles(slice(0, len(rows))))[1].flatten()
    wanted = int(count * len(rows) / n) + 1
    if wanted >= len(z):  # also ends the search where nothing lies above: ties, NaN
        return torch.zeros((), device=z.device)
    return z.float().topk(wanted, sorted=False).values.min().clamp(min=0)


def _cut(
    product: Product, support: Support, z: Tensor, count: int, group: Group
) -> tuple[Support, Tensor]:
    """The `count` largest of all that was collected."""
    scores = product.scores(z, support.indices)
    everyone = group.gather(scores)
    if len(everyone) <= count:
        return support, z
    chosen = true_places(scores >= everyone.topk(count, sorted=False).values.min())
    return support.at(chosen), z[chosen]


def group_max(product: Product, groups: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The largest of each of `groups` equal, consecutive groups of latents."""
    parts = []
    for rows in product.row_tiles():
        _, z = next(product.tiles(rows, whole=True))
        scores, place = z.view(len(z), groups, -1).max(2)
        size = z.shape[1] // groups
        parts.append((scores, place + torch.arange(groups, device=z.device) * size))
    if not parts:
        return product.x.new_zeros(0, groups), torch.zeros(0, groups, dtype=torch.long)
    scores, latents = (torch.cat(side) for side in zip(*parts, strict=True))
    return product.pre_activations(scores, latents), latents
