"""What a latent of a denoiser does over the timesteps, and where it is strongest on an image."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.model.hooks import inference
from vision_sae.report.heat import Heats, Wanted
from vision_sae.sae import SAE
from vision_sae.sparse.codes import Codes
from vision_sae.store import Store

ROWS = 2**14  # that are encoded at a time


class Steps(NamedTuple):
    """Heat at each (latent, image)'s strongest timestep; activity over all images.

    With both halves of a guided batch, activity counts both.
    """

    heats: Heats
    strongest: dict[tuple[int, int], int]  # (latent, image) -> timestep
    share: Float[Tensor, "T s"]  # of tokens on which the latent fires
    mean: Float[Tensor, "T s"]  # activation where it fires; NaN where it never does


class _Pairs(NamedTuple):
    """The entries of one piece that belong to a wanted (image, latent)."""

    wanted: Int[Tensor, " w"]  # image * latents + latent, ascending, images from 0
    pair: Int[Tensor, " e"]  # into `wanted`
    slot: Int[Tensor, " e"]  # timestep and half
    place: Int[Tensor, " e"]  # token of the slot
    value: Float[Tensor, " e"]


def over_steps(sae: SAE, store: Store, wanted: Wanted) -> Steps:
    """One pass over a store of a denoiser; maps are of `wanted` pairs only, in sparse codes."""
    timesteps, s = store.index.provenance.timesteps, sae.config.s
    halves = 2 if store.index.provenance.half == "both" else 1
    slots = len(timesteps) * halves
    fired, sums = torch.zeros(2, slots * s, dtype=torch.float64)
    heats: Heats = {}
    strongest: dict[tuple[int, int], int] = {}
    with inference(sae):
        for first, codes in _pieces(sae, store):
            slot = codes.rows % store.index.tokens_per_image // _per_slot(store, slots)
            fired.index_add_(0, slot * s + codes.indices, torch.ones_like(slot).double())
            sums.index_add_(0, slot * s + codes.indices, codes.values.abs().double())
            for (latent, image), at, heat in _maps(store, codes, slots, first, wanted):
                strongest[latent, image] = timesteps[at // halves]
                if heat is not None:
                    heats[latent, image] = heat
    tokens = store.images * _per_slot(store, slots) * halves
    fired, sums = (each.view(len(timesteps), halves, s).sum(1) for each in (fired, sums))
    return Steps(heats, strongest, (fired / tokens).float(), (sums / fired).float())


def _per_slot(store: Store, slots: int) -> int:
    return store.index.tokens_per_image // slots


def _pieces(sae: SAE, store: Store) -> Iterator[tuple[int, Codes]]:
    """The first image of a piece, and its codes without zeros."""
    first = 0
    for acts in store.in_order(max(1, ROWS // store.index.tokens_per_image)):
        yield first, sae.encode(acts.flatten(0, 1)).without_zeros()
        first += len(acts)


def _maps(
    store: Store, codes: Codes, slots: int, first: int, wanted: Wanted
) -> Iterator[tuple[tuple[int, int], int, list[list[float]] | None]]:
    """((latent, image), strongest slot, its map) of each wanted pair of a piece."""
    pairs = _pairs(store, codes, slots, first, wanted)
    if not len(pairs.wanted):
        return
    peaks = torch.zeros(len(pairs.wanted) * slots)
    peaks.scatter_reduce_(0, pairs.pair * slots + pairs.slot, pairs.value.abs(), "amax")
    best = peaks.view(-1, slots).argmax(1)
    maps = _best_maps(store, pairs, best)
    for row, key in enumerate(pairs.wanted.tolist()):
        image, latent = divmod(key, codes.width)
        yield (latent, image + first), int(best[row]), None if maps is None else maps[row].tolist()


def _best_maps(
    store: Store, pairs: _Pairs, best: Int[Tensor, " w"]
) -> Float[Tensor, "w h v"] | None:
    if store.index.grid is None:
        return None
    rows, columns = store.index.grid
    place = pairs.place - store.index.prefix_tokens
    kept = (pairs.slot == best[pairs.pair]) & (place >= 0)
    flat = torch.zeros(len(best) * rows * columns)
    flat.index_add_(0, pairs.pair[kept] * rows * columns + place[kept], pairs.value[kept])
    return flat.view(-1, rows, columns)


def _pairs(store: Store, codes: Codes, slots: int, first: int, wanted: Wanted) -> _Pairs:
    tokens, per_slot = store.index.tokens_per_image, _per_slot(store, slots)
    images = range(first, first + len(codes) // tokens)
    listed = [(i - first) * codes.width + s for i in images for s in wanted.get(i, ())]
    keys = torch.tensor(sorted(listed), dtype=torch.int64)
    mine = codes.rows // tokens * codes.width + codes.indices
    found = torch.isin(mine, keys)
    token = codes.rows[found] % tokens
    pair = torch.searchsorted(keys, mine[found])
    return _Pairs(keys, pair, token // per_slot, token % per_slot, codes.values[found])
