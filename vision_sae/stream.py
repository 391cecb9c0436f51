"""Rows for training straight from a running model: nothing is stored.

The images of an epoch come in a seeded order, in blocks of about `buffer_rows` rows. The rows of a
block are shuffled and given out while a thread makes the next one. What batch i holds is a function
of (seed, i), so that a resumed training makes the block it stopped in again, and goes on.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.data import ImageSource
from vision_sae.data.decode import Batch, prepared
from vision_sae.errors import ConfigError, DataError
from vision_sae.extract import activations_of, describe, read_of
from vision_sae.model.adapter import Adapter
from vision_sae.provenance import Provenance, Tokens
from vision_sae.store.index import DTYPES, DType
from vision_sae.store.prefetch import prefetched

log = logging.getLogger(__name__)
Part = tuple[int, int]  # (rank, size): this process among those that share each batch
SPREAD = 512  # images that a sample comes from, at least


class _Block(NamedTuple):
    """Some images' rows in the order in which they are given out."""

    rows: Float[Tensor, "n d"]
    keys: list[str]
    order: Tensor  # of the rows: number = image * tokens_per_image + token


class Stream:
    """A source of rows (`vision_sae.source.Source`) that runs the model as training asks for them.

    `buffer_rows` is the number of rows that are shuffled together; two such blocks are in memory.
    An image that cannot be read is counted and named in `skipped`, and rows of others in its block
    take the place of its rows. With several processes, each runs the model on images of its own.
    Raises what extraction raises for the site and the source.

        stream = Stream(load_adapter("emoji-clip"), open_data("emoji-canvas"), SITE, tokens="cls")
        train(SAE(SAEConfig.of(stream.width, 768, k=4)), stream)
    """

    def __init__(
        self,
        adapter: Adapter,
        source: ImageSource,
        site: str,
        *,
        tokens: Tokens = "all",
        buffer_rows: int = 2**17,
        batch_size: int = 64,
        dtype: DType = "float32",
    ) -> None:
        if min(buffer_rows, batch_size) < 1:
            raise ConfigError(
                "buffer_rows and batch_size must be at least 1; "
                f"got buffer_rows={buffer_rows}, batch_size={batch_size}"
            )
        self.adapter, self.source, self.batch_size = adapter, source, batch_size
        self.reading = read_of(adapter, source, [site], tokens, dtype)
        self.index = describe(adapter, source, self.reading.sites[0], tokens, dtype)
        self.images, self.t = len(source), self.index.tokens_per_image
        self.block_images = max(1, buffer_rows // self.t)
        self.skipped: dict[str, str] = {}

    @property
    def rows(self) -> int:
        """Of one epoch."""
        return self.images * self.t

    @property
    def width(self) -> int:
        return self.index.width

    @property
    def provenance(self) -> Provenance:
        return self.index.provenance

    @property
    def name(self) -> str:
        about = self.provenance
        return f"stream of {about.model} at {about.site} ({about.tokens}) on {about.data}"

    def batches(
        self, size: int, *, seed: int = 0, start: int = 0, part: Part = (0, 1)
    ) -> Iterator[Float[Tensor, "n d"]]:
        """Endless batches of rows. Raises DataError where no image of a block can be read."""
        plan = self._plan(size, part)
        return prefetched(partial(self._batches, plan, seed, start), depth=plan.ahead)

    def sample(self, n: int, *, seed: int = 0) -> Float[Tensor, "n d"]:
        """n rows (or all) of at least 512 images, for statistics; the same on all processes."""
        images = min(self.images, max(-(-n // self.t), SPREAD))
        rows = self._block(_Share(seed, 0, images), seed + 7).rows
        return rows[:n].float()

    def locate(self, size: int, seed: int, batch: int, row: int, parts: int = 1) -> str:
        """Where a row of a batch that `parts` processes share came from."""
        own, rank = divmod(row, parts)
        plan = self._plan(size, (rank, parts))
        epoch, offset = plan.place(batch)
        number, inside = divmod(offset + own, plan.block_rows)
        share = plan.shares(seed, epoch)[number]
        block = self._block(share, _mixed(share.seed, share.first))
        image, token = divmod(int(block.order[inside]), self.t)
        return f"token {token} of image {block.keys[image]!r}"

    def _plan(self, size: int, part: Part) -> "_Plan":
        return _Plan(self.images, self.t, self.block_images, min(size, self.rows), part)

    def _batches(self, plan: "_Plan", seed: int, start: int) -> Iterator[Tensor]:
        while True:
            epoch, offset = plan.place(start)
            left = plan.per_epoch - start % plan.per_epoch
            blocks = self._rows(plan, seed, epoch, offset)
            yield from islice(_cut(blocks, plan.mine), left)
            start += left

    def _rows(self, plan: "_Plan", seed: int, epoch: int, offset: int) -> Iterator[Tensor]:
        """The blocks of an epoch from a row on, as tensors to take rows from."""
        skipped, inside = divmod(offset, plan.block_rows)
        for number, share in enumerate(plan.shares(seed, epoch)):
            if number >= skipped:
                rows = self._block(share, _mixed(share.seed, share.first)).rows
                yield rows[inside:]
                inside = 0

    def _block(self, share: "_Share", seed: int) -> _Block:
        """Run the model on a share of the images; rows in a seeded order."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(share.images * self.t, generator=generator)
        found = torch.empty(share.images, self.t, self.width, dtype=DTYPES[self.reading.dtype])
        good, keys = [], list[str]()
        for batch in self._batches_of(share):
            if batch.good:
                acts = activations_of(self.adapter, batch.inputs, self.reading)
                places = [len(keys) + i for i in batch.good]
                found[places] = acts[self.reading.sites[0].name].to("cpu", found.dtype)
                good += places
            keys += [item.key for item in batch.items]
        self._replace_broken(found, good)
        return _Block(found.flatten(0, 1)[order], keys, order)

    def _batches_of(self, share: "_Share") -> Iterator[Batch]:
        source = self.source.reordered(share.seed)
        stop, prepare = share.first + share.images, self.adapter.prepare
        for batch in prepared(source, prepare, self.batch_size, start=share.first, stop=stop):
            for item in batch.items:
                if item.error is not None and item.key not in self.skipped:
                    self.skipped[item.key] = item.error
                    log.warning("skipped %s: %s", item.key, item.error)
            yield batch

    def _replace_broken(self, found: Tensor, good: list[int]) -> None:
        if not good:
            raise DataError(
                f"none of {len(found)} images of a block can be read; the first: "
                f"{next(iter(self.skipped.items()))}"
            )
        missing = sorted(set(range(len(found))) - set(good))
        for i, place in enumerate(missing):
            found[place] = found[good[i % len(good)]]


class _Share(NamedTuple):
    """Some neighbours among the images in a seeded order."""

    seed: int
    first: int
    images: int


@dataclass(frozen=True)
class _Plan:
    """How the images of an epoch become blocks and batches, for one of several processes."""

    images: int
    t: int
    block_images: int
    size: int
    part: Part

    @property
    def mine(self) -> int:
        """The rows of each batch that this process gives."""
        rank, parts = self.part
        return len(range(rank, self.size, parts))

    @property
    def own_images(self) -> int:
        """Of an epoch; those that do not divide among the processes wait for the next."""
        return self.images // self.part[1]

    @property
    def own_block(self) -> int:
        return min(self.own_images, max(1, self.block_images // self.part[1]))

    @property
    def block_rows(self) -> int:
        return self.own_block * self.t

    @property
    def per_epoch(self) -> int:
        """Batches; the last rows that fill none are left out of an epoch."""
        largest = -(-self.size // self.part[1])
        return max(1, self.own_images * self.t // largest)

    @property
    def ahead(self) -> int:
        """Batches to make early: those of about one block."""
        return max(2, self.block_rows // max(1, self.mine))

    def place(self, batch: int) -> tuple[int, int]:
        """The epoch of a batch and its first row there."""
        epoch, number = divmod(batch, self.per_epoch)
        return epoch, number * self.mine

    def shares(self, seed: int, epoch: int) -> list[_Share]:
        """The blocks of an epoch: of this process's range of the images."""
        mine, block = self.own_images, self.own_block
        order, first = _mixed(seed, epoch, 0), self.part[0] * mine
        return [
            _Share(order, first + start, min(block, mine - start))
            for start in range(0, mine, block)
        ]


def _mixed(*numbers: int) -> int:
    """A seed from several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return mixed


def _cut(blocks: Iterator[Tensor], n: int) -> Iterator[Tensor]:
    """Pieces of n rows, across the edges of blocks."""
    held: list[Tensor] = []
    for block in blocks:
        pieces = list(torch.cat([*held, block]).split(n))
        held = [pieces.pop()] if len(pieces[-1]) < n else []
        yield from (rows.float() for rows in pieces)
