"""Read a store: whole images by number, or rows in a seeded shuffle, without loading it all."""

import copy
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import DataError, StoreError, UnknownName
from vision_sae.provenance import Half
from vision_sae.store.index import (
    INDEX,
    Sidecar,
    StoreIndex,
    gathered,
    read_index,
    read_sidecar,
)
from vision_sae.store.mapped import Shards
from vision_sae.store.order import Part, shuffled
from vision_sae.store.prefetch import prefetched

SITES = "sites.json"  # {"sites": {site: sub-folder}}: in place of an index where there are several


class Store:
    """The activations in a folder; rows are image-major: row = image * tokens_per_image + token.

    Shards are memory-mapped when they are first read, and then checked against their checksums
    unless `verify` is false; a store of more than 4 GB by a thread while it is read. Raises
    StoreError for no store, several (see `of_site`), an unfinished one (unless `allow_partial`), or
    a shard that is missing or of another size; reading raises it for a shard whose bytes are not
    what was written, in a large store as soon as one is found.
    """

    def __init__(
        self, folder: Path | str, *, allow_partial: bool = False, verify: bool = True
    ) -> None:
        self.folder = Path(folder)
        if not (self.folder / INDEX).exists() and (self.folder / SITES).exists():
            raise StoreError(
                f"{self.folder} holds the stores of several sites; choose one of "
                f"{', '.join(_sites(self.folder).values())}"
            )
        self.index: StoreIndex = read_index(self.folder)
        if not self.index.complete:
            self.index = gathered(self.folder, self.index)
        if not self.index.complete and not allow_partial:
            raise StoreError(
                f"{self.folder} is unfinished: {self.index.images} images were written before it "
                "stopped; run the same extract command again to finish it"
            )
        if not self.index.images:
            raise StoreError(f"{self.folder} holds no finished shard yet")
        self._shards = Shards(self.folder, self.index, verify)
        self._ends = list(accumulate(shard.images for shard in self.index.shards))
        self._tokens = slice(0, self.index.tokens_per_image)  # of those that the shards hold

    @classmethod
    def of_site(
        cls, folder: Path | str, site: str, *, allow_partial: bool = False, verify: bool = True
    ) -> "Store":
        """The store of one site in a folder of several. Raises UnknownName for a site not there."""
        folder = Path(folder)
        if (folder / SITES).exists():
            sites = _sites(folder)
        else:
            sites = {read_index(folder).provenance.site: str(folder)}
        if site not in sites:
            raise UnknownName("site", site, sites)
        return cls(sites[site], allow_partial=allow_partial, verify=verify)

    def at(self, timestep: int, half: Half | None = None) -> "Store":
        """The rows of one denoising step; of a guided one with both halves, those of `half`.

        Raises DataError for a step or a half that was not kept.
        """
        steps, held = self.index.provenance.timesteps, self.index.provenance.half
        if half not in (None, held) and held != "both":
            raise DataError(f"no half {half!r} in {self.folder}, which holds {held!r}")
        if timestep not in steps:
            kept = f"which holds {', '.join(map(str, steps))}" if steps else "which holds no steps"
            raise DataError(f"no timestep {timestep} in {self.folder}, {kept}")
        size = self.index.tokens_per_image // len(steps)
        first = self._tokens.start + steps.index(timestep) * size
        if held == "both" and half in ("cond", "uncond"):  # as a StepAdapter lays its slots out
            size, held = size // 2, half
            first += size * (half == "uncond")
        known = {"timesteps": (timestep,), "half": held}
        provenance = self.index.provenance.model_copy(update=known)
        view = copy.copy(self)
        view.index = self.index.model_copy(
            update={"provenance": provenance, "tokens_per_image": size}
        )
        view._tokens = slice(first, first + size)
        return view

    def check(self) -> None:
        """Read every shard against its checksum, now. Raises StoreError for the first bad one."""
        for number in range(len(self.index.shards)):
            self._shards.verify(number)

    @property
    def images(self) -> int:
        return self._ends[-1]

    @property
    def rows(self) -> int:
        return self.images * self.index.tokens_per_image

    @property
    def width(self) -> int:
        return self.index.width

    @cached_property
    def _sidecars(self) -> list[Sidecar]:
        return [read_sidecar(self.folder / f"{shard.name}.json") for shard in self.index.shards]

    @cached_property
    def keys(self) -> list[str]:
        return [key for side in self._sidecars for key in side.keys]

    @cached_property
    def positions(self) -> list[int]:
        """Where each image stands in its source; skipped images leave gaps."""
        return [position for side in self._sidecars for position in side.positions]

    @cached_property
    def about(self) -> list[dict[str, Any]]:
        """What is known of each image: label, caption, factors."""
        return [known for side in self._sidecars for known in side.about]

    def acts(self, images: Sequence[int]) -> Float[Tensor, "b t d"]:
        """The activations of some images, by number, in float32. Raises DataError for none such."""
        out = torch.empty(len(images), self.index.tokens_per_image, self.width)
        for i, image in enumerate(images):
            if not 0 <= image < self.images:
                raise DataError(f"no image {image} in {self.folder}, which holds {self.images}")
            shard = bisect_right(self._ends, image)
            out[i] = self._shards[shard][image - self._start(shard), self._tokens]
        return out

    def take(self, rows: Sequence[int] | Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Some rows, by number, in float32. Raises DataError for none such."""
        numbers = torch.as_tensor(rows, dtype=torch.int64)
        for row in numbers[(numbers < 0) | (numbers >= self.rows)][:1].tolist():
            raise DataError(f"no row {row} in {self.folder}, which holds {self.rows}")
        return self._gather(numbers)

    def in_order(self, images: int = 256) -> Iterator[Float[Tensor, "b t d"]]:
        """All activations in order, about `images` images at a time, in float32."""
        for number in range(len(self.index.shards)):
            for part in self._shards[number].split(images):
                yield part[:, self._tokens].float()

    def batches(
        self, size: int, *, seed: int = 0, start: int = 0, part: Part = (0, 1)
    ) -> Iterator[Float[Tensor, "n d"]]:
        """Endless batches of rows, globally shuffled; batch i is a function of (seed, i).

        The next two are read in the background.
        """
        order = shuffled(self.rows, size, seed=seed, start=start, part=part)
        return prefetched(lambda: map(self._gather, order))

    def locate(self, size: int, seed: int, batch: int, row: int, parts: int = 1) -> str:
        """Where a row of a batch came from: its shard, image and token."""
        number = int(next(shuffled(self.rows, size, seed=seed, start=batch))[row])
        image, token = divmod(number, self.index.tokens_per_image)
        shard = self.index.shards[bisect_right(self._ends, image)].name
        return f"row {number} (shard {shard}, image {image} {self.keys[image]!r}, token {token})"

    def sample(self, n: int, *, seed: int = 0) -> Float[Tensor, "n d"]:
        """n rows (or all) drawn without replacement, for statistics: the first batch of n."""
        return self._gather(next(shuffled(self.rows, n, seed=seed, start=0)))

    def _start(self, shard: int) -> int:
        """The number of a shard's first image."""
        return self._ends[shard] - self.index.shards[shard].images

    def _gather(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Rows by number, shard by shard and forwards in each, as disks like it best."""
        shards, tokens = self._shards, self.index.tokens_per_image
        places = rows // tokens * shards.tokens + self._tokens.start + rows % tokens
        places, order = places.sort()
        shard_of = torch.searchsorted(shards.row_ends, places, right=True)
        numbers, counts = shard_of.unique_consecutive(return_counts=True)
        found = torch.empty(len(rows), self.width, dtype=shards.dtype)
        parts = zip(places.split(counts.tolist()), found.split(counts.tolist()), strict=True)
        for number, (mine, into) in zip(numbers.tolist(), parts, strict=True):
            first = self._start(number) * shards.tokens
            torch.index_select(shards[number].flatten(0, 1), 0, mine - first, out=into)
        out = torch.empty(len(rows), self.width)
        out[order] = found.float()
        return out


def _sites(folder: Path) -> dict[str, str]:
    """The folder of each site's store."""
    path = folder / SITES
    try:
        found = json.loads(path.read_bytes())["sites"]
        return {str(site): str(folder / name) for site, name in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f'{path} does not hold {{"sites": {{site: sub-folder}}}}') from error
