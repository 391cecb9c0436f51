"""Read a store: whole images by position, or rows in a seeded shuffle, without loading it all."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vision_sae.errors import DataError, StoreError
from vision_sae.files import sha256
from vision_sae.store.index import Shard, StoreIndex, read_index
from vision_sae.store.order import Part, shuffled


class Store:
    """The activations in a folder; rows are image-major: row = image * tokens_per_image + token.

    Shards are memory-mapped. Raises StoreError for no store, an unfinished one (unless
    `allow_partial`), or a shard whose bytes are not what was written (`verify` reads them all).
    """

    def __init__(
        self, folder: Path | str, *, allow_partial: bool = False, verify: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.index: StoreIndex = read_index(self.folder)
        if not self.index.complete and not allow_partial:
            raise StoreError(
                f"{self.folder} is unfinished: {self.index.images} images were written before it "
                "stopped; run the same extract command again to finish it"
            )
        if not self.index.images:
            raise StoreError(f"{self.folder} holds no finished shard yet")
        self._maps = [self._map(shard, verify) for shard in self.index.shards]
        self._ends = list(accumulate(shard.images for shard in self.index.shards))

    def _map(self, shard: Shard, verify: bool) -> Tensor:
        path = self.folder / f"{shard.name}.safetensors"
        if not path.exists():
            raise StoreError(f"shard {path} is missing; run extract again with --overwrite")
        if verify and sha256(path) != shard.sha256:
            raise StoreError(
                f"shard {path} is corrupt (its checksum is not the one in the index); "
                "run extract again with --overwrite"
            )
        try:
            with safe_open(path, framework="pt") as file:
                acts: Tensor = file.get_tensor("activations")
        except SafetensorError as error:
            raise StoreError(f"shard {path} is corrupt: {error}") from error
        return acts

    @property
    def images(self) -> int:
        return self.index.images

    @property
    def rows(self) -> int:
        return self.images * self.index.tokens_per_image

    @property
    def width(self) -> int:
        return self.index.width

    @cached_property
    def _sidecars(self) -> list[dict[str, Any]]:
        return [self._sidecar(self.folder / f"{shard.name}.json") for shard in self.index.shards]

    def _sidecar(self, path: Path) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from error
        return found

    @cached_property
    def keys(self) -> list[str]:
        return [key for side in self._sidecars for key in side["keys"]]

    @cached_property
    def positions(self) -> list[int]:
        """Where each image stands in its source; skipped images leave gaps."""
        return [position for side in self._sidecars for position in side["positions"]]

    @cached_property
    def about(self) -> list[dict[str, Any]]:
        """What is known of each image: label, caption, factors."""
        return [known for side in self._sidecars for known in side["about"]]

    def acts(self, images: Sequence[int]) -> Float[Tensor, "b t d"]:
        """The activations of some images, by number, in float32. Raises DataError for none such."""
        parts = [torch.empty(0, self.index.tokens_per_image, self.width)]
        for image in images:
            if not 0 <= image < self.images:
                raise DataError(f"no image {image} in {self.folder}, which holds {self.images}")
            shard = bisect_right(self._ends, image)
            first = self._ends[shard] - self.index.shards[shard].images
            parts.append(self._maps[shard][image - first, None].float())
        return torch.cat(parts)

    def in_order(self, images: int = 256) -> Iterator[Float[Tensor, "b t d"]]:
        """All activations in order, about `images` images at a time, in float32."""
        for shard in self._maps:
            for part in shard.split(images):
                yield part.float()

    def batches(
        self, size: int, *, seed: int = 0, start: int = 0, part: Part = (0, 1)
    ) -> Iterator[Float[Tensor, "n d"]]:
        """Endless batches of rows, globally shuffled; batch i is a function of (seed, i)."""
        for order in shuffled(self.rows, size, seed=seed, start=start, part=part):
            yield self._gather(order)

    def locate(self, size: int, seed: int, batch: int, row: int) -> str:
        """Where a row of a batch came from: its shard, image and token."""
        number = int(next(shuffled(self.rows, size, seed=seed, start=batch))[row])
        image, token = divmod(number, self.index.tokens_per_image)
        shard = self.index.shards[bisect_right(self._ends, image)].name
        return f"row {number} (shard {shard}, image {image} {self.keys[image]!r}, token {token})"

    def _gather(self, rows: Tensor) -> Float[Tensor, "n d"]:
        """Rows by number, from whichever shard holds them."""
        t = self.index.tokens_per_image
        ends = torch.tensor(self._ends) * t
        shard_of = torch.searchsorted(ends, rows, right=True)
        out = torch.empty(len(rows), self.width)
        for number in shard_of.unique().tolist():
            mine = (shard_of == number).nonzero()[:, 0]
            first = int(ends[number]) - self.index.shards[number].images * t
            flat = self._maps[number].flatten(0, 1)
            out[mine] = flat[rows[mine] - first].float()
        return out

    def sample(self, n: int, *, seed: int = 0) -> Float[Tensor, "n d"]:
        """n rows (or all) drawn without replacement, for statistics."""
        return next(self.batches(n, seed=seed))
