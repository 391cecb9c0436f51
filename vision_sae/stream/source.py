"""A source of rows that runs the model as training asks for them.

The images of an epoch come in a seeded order, in blocks of about `buffer_rows` rows. The rows of a
block are shuffled and given out while a thread makes the next one. What batch i holds is a function
of (seed, i), so that a resumed training makes the block it stopped in again, and goes on.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.data import ImageSource
from vision_sae.errors import ConfigError
from vision_sae.extract import Reading, describe, read_of
from vision_sae.model.adapter import Adapter
from vision_sae.model.sites import Site
from vision_sae.provenance import Provenance, Tokens
from vision_sae.store.index import DType
from vision_sae.store.prefetch import prefetched
from vision_sae.stream.passes import Passes
from vision_sae.stream.plan import Part, Plan, Share, mixed

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
    `passes` are what streams of other sites share, see `streams`.
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
        passes: Passes | None = None,
    ) -> None:
        if min(buffer_rows, batch_size) < 1:
            raise ConfigError(
                "buffer_rows and batch_size must be at least 1; "
                f"got buffer_rows={buffer_rows}, batch_size={batch_size}"
            )
        self.adapter, self.source = adapter, source
        if passes is None:
            reading = read_of(adapter, source, [site], tokens, dtype)
            passes = Passes(adapter, source, reading, batch_size)
        self.passes, self.site = passes, passes.site(site)
        self.index = describe(adapter, source, self.site, tokens, dtype)
        self.images, self.t = len(source), self.index.tokens_per_image
        self.block_images = max(1, buffer_rows // self.t)

    @property
    def skipped(self) -> dict[str, str]:
        """Images that could not be read, and why."""
        return self.passes.skipped

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
        rows = self._block(Share(seed, 0, images), seed + 7).rows
        return rows[:n].float()

    def locate(self, size: int, seed: int, batch: int, row: int, parts: int = 1) -> str:
        """Where a row of a batch came from: a process has rows rank, rank + parts, ... of it."""
        row, rank = divmod(row, parts)
        plan = self._plan(size, (rank, parts))
        epoch, offset = plan.place(batch)
        number, inside = divmod(offset + row, plan.block_rows)
        share = plan.shares(seed, epoch)[number]
        block = self._block(share, mixed(share.seed, share.first))
        image, token = divmod(int(block.order[inside]), self.t)
        return f"token {token} of image {block.keys[image]!r}"

    def _plan(self, size: int, part: Part) -> Plan:
        return Plan(self.images, self.t, self.block_images, min(size, self.rows), part)

    def _batches(self, plan: Plan, seed: int, start: int) -> Iterator[Tensor]:
        while True:
            epoch, offset = plan.place(start)
            left = plan.per_epoch - start % plan.per_epoch
            blocks = self._rows(plan, seed, epoch, offset)
            yield from islice(_cut(blocks, plan.mine), left)
            start += left

    def _rows(self, plan: Plan, seed: int, epoch: int, offset: int) -> Iterator[Tensor]:
        """The blocks of an epoch from a row on, as tensors to take rows from."""
        skipped, inside = divmod(offset, plan.block_rows)
        for number, share in enumerate(plan.shares(seed, epoch)):
            if number >= skipped:
                rows = self._block(share, mixed(share.seed, share.first)).rows
                yield rows[inside:]
                inside = 0

    def _block(self, share: Share, seed: int) -> _Block:
        """The rows of some images, in a seeded order."""
        acts, keys = self.passes.acts(share, self.site.name)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(share.images * self.t, generator=generator)
        return _Block(acts.flatten(0, 1)[order], keys, order)


def streams(
    adapter: Adapter,
    source: ImageSource,
    sites: Sequence[str],
    *,
    tokens: Tokens = "all",
    batch_size: int = 64,
    dtype: DType = "float32",
    **options: Any,
) -> dict[str, Stream]:
    """A stream for each site; trainings that go on side by side run the model once for all of them.

    Each gives what a `Stream` of its own gives. Sites share the passes where they have as many
    tokens and are read alike (batch size, seed); two blocks of each then wait in memory at most.
    Raises as `Stream` does.
    """
    reading = read_of(adapter, source, sites, tokens, dtype)
    shared: dict[int, list[Site]] = {}
    for site in reading.sites:
        t = describe(adapter, source, site, tokens, dtype).tokens_per_image
        shared.setdefault(t, []).append(site)
    found = {}
    for some in shared.values():
        passes = Passes(adapter, source, Reading(tuple(some), tokens, dtype), batch_size)
        for site in some:
            found[site.name] = Stream(
                adapter, source, site.name, passes=passes, tokens=tokens, batch_size=batch_size,
                dtype=dtype, **options,
            )  # fmt: skip
    return {site: found[site] for site in sites}


def _cut(blocks: Iterator[Tensor], n: int) -> Iterator[Tensor]:
    """Pieces of n rows, across the edges of blocks."""
    held: list[Tensor] = []
    for block in blocks:
        pieces = list(torch.cat([*held, block]).split(n))
        held = [pieces.pop()] if len(pieces[-1]) < n else []
        yield from (rows.float() for rows in pieces)
