"""Do a latent's active patches lie together? Moran's I on patch maps.

Shape key: p patches of an image, m maps (a latent on an image).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.measures.case import Case, Encoding
from vision_sae.measures.score import Score, Scores

NON_LOCAL = 0.1
MAPS = 2**14  # held at a time


class Limits(NamedTuple):
    """Which maps count, and how many; the defaults are ViSAEBench's (0.1.0, M1)."""

    least_active: int = 5  # patches
    largest_share: float = 0.9  # of active patches
    least_images: int = 50  # of a latent
    most_images: int = 200  # of a latent; counted between batches of 64 images, as there
    most_latents: int = 500
    seed: int = 42


def spatial(case: Case) -> Scores:
    """morans_i: mean over latents of their mean Moran's I; non_local: the share below 0.1.

    I = (p / sum W) (y' W y) / (y' y), y a latent's map over an image's p patches less its mean, W
    ones between neighbours (queen: 8 of them inside the grid). Maps with 5 active patches to 90%
    count, of latents with at least 50 of them. Moran 1950; ViSAEBench's M1. n: latents. Raises
    DataError when no latent has 50 maps.
    """
    found = morans_of_latents(case.on_test)
    return {
        "morans_i": Score(float(found.mean()), n=len(found)),
        "non_local": Score(float((found < NON_LOCAL).double().mean()), n=len(found)),
    }


def morans_of_latents(encoding: Encoding, limits: Limits = Limits()) -> Float[Tensor, " m"]:  # noqa: B008
    """The mean Moran's I of each latent that has enough maps, at most `most_latents` drawn."""
    grid = encoding.sample.layout.grid
    assert grid is not None
    s = encoding.codes.width
    latents, images, values = [], [], []
    for some in _maps(encoding, limits):
        latents.append(some.latent)
        images.append(some.image)
        values.append(morans_i(some.maps, grid))
    latent, image, value = torch.cat(latents), torch.cat(images), torch.cat(values)
    kept = value.isfinite()
    kept[kept.clone()] = _within(latent[kept], image[kept], limits.most_images)
    latent, value = latent[kept], value[kept]
    counts = torch.bincount(latent, minlength=s)
    sums = torch.zeros(s, dtype=torch.float64).index_add(0, latent, value)
    enough = (counts >= limits.least_images).nonzero()[:, 0]
    if not len(enough):
        raise DataError(
            f"no latent has {limits.least_images} maps with {limits.least_active} active patches "
            f"to {limits.largest_share:.0%}; the most is {int(counts.max()) if s else 0}"
        )
    return (sums / counts)[_drawn(enough, limits)]


def _drawn(latents: Int[Tensor, " m"], limits: Limits) -> Int[Tensor, " k"]:
    if len(latents) <= limits.most_latents:
        return latents
    draw = np.random.RandomState(limits.seed).choice(
        latents.numpy(), size=limits.most_latents, replace=False
    )
    return torch.from_numpy(draw)


def _within(
    latent: Int[Tensor, " m"], image: Int[Tensor, " m"], most: int, batch: int = 64
) -> Tensor:
    """Which maps, in order of images, a latent still takes: until a batch starts with `most`."""
    order = latent.argsort(stable=True)
    own, batches = latent[order], image[order].div(batch, rounding_mode="floor")
    place = torch.arange(len(own))
    first = torch.searchsorted(own, own)  # where the latent's maps begin
    group = own * (int(batches.max()) + 1 if len(batches) else 1) + batches
    begins = torch.searchsorted(group, group)  # where its maps of this batch begin
    kept = torch.empty(len(own), dtype=torch.bool)
    kept[order] = (begins - first < most) & (place >= first)
    return kept


class _Maps(NamedTuple):
    latent: Int[Tensor, " m"]
    image: Int[Tensor, " m"]
    maps: Float[Tensor, "m p"]


def _maps(encoding: Encoding, limits: Limits) -> Iterator[_Maps]:
    """The maps that count, images in order; only they are made dense."""
    layout, codes = encoding.sample.layout, encoding.codes
    assert layout.grid is not None
    p = layout.grid[0] * layout.grid[1]
    most = int(limits.largest_share * p)
    for first in range(0, encoding.sample.images, 256):
        images = min(256, encoding.sample.images - first)
        start = first * layout.tokens
        part = codes.rows_at(slice(start, start + images * layout.tokens)).without_zeros()
        patch = part.rows % layout.tokens - layout.prefix
        inside = (patch >= 0) & (patch < p)
        image = part.rows.div(layout.tokens, rounding_mode="floor")[inside]
        key, patch, value = image * codes.width + part.indices[inside], patch[inside], part.values
        unique, inverse, counts = key.unique(return_inverse=True, return_counts=True)
        good = (counts >= limits.least_active) & (counts <= most)
        place = good.cumsum(0) - 1  # of the maps that count
        mine = good[inverse]
        rows, columns, numbers = place[inverse[mine]], patch[mine], value[inside][mine]
        keys = unique[good]
        maps = torch.zeros(len(keys), p).index_put((rows, columns), numbers)
        for some in torch.arange(len(keys)).split(MAPS):
            where = keys[some]
            at = where.div(codes.width, rounding_mode="floor") + first
            yield _Maps(where % codes.width, at, maps[some])


def morans_i(maps: Float[Tensor, "m p"], grid: tuple[int, int]) -> Float[Tensor, " m"]:
    """Of each map; NaN for a constant one."""
    W = queen(grid)
    y = maps.double() - maps.double().mean(1, keepdim=True)
    spread = y.square().sum(1)
    found = (y @ W * y).sum(1) / spread * (len(W) / W.sum())
    return torch.where(spread > 1e-10, found, torch.nan)


def queen(grid: tuple[int, int]) -> Float[Tensor, "p p"]:
    """1 between patches that touch, at corners too."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    apart = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
    return (apart == 1).double()
