"""Write a store shard by shard; a kill at any moment leaves whole shards and their index."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import DataError, StoreError, claim_folder
from vision_sae.files import write_json, write_tensors
from vision_sae.store.index import DTYPES, INDEX, Row, Shard, StoreIndex, read_index


class StoreWriter:
    """Collects rows into shards of about `shard_bytes`.

    Opening a folder that holds an unfinished store of the same job resumes it: `index.seen` says
    where to go on. Raises OutputExists for a folder with something else in it, StoreError for a
    store of another job.
    """

    def __init__(
        self,
        folder: Path,
        index: StoreIndex,
        *,
        shard_bytes: int = 64 * 2**20,
        overwrite: bool = False,
    ) -> None:
        claim_folder(folder, INDEX, overwrite=overwrite)
        self.folder = folder
        self.index = self._resume(index, overwrite)
        item = torch.empty((), dtype=DTYPES[index.dtype]).element_size()
        self.shard_images = max(1, shard_bytes // (index.tokens_per_image * index.width * item))
        self._acts: list[Tensor] = []
        self._rows: list[Row] = []
        self._skipped: list[tuple[int, str]] = []

    def _resume(self, index: StoreIndex, overwrite: bool) -> StoreIndex:
        if overwrite or not (self.folder / INDEX).exists():
            (self.folder / INDEX).unlink(missing_ok=True)  # first: it must not name what is gone
            for ending in ("safetensors", "json"):
                for old in self.folder.glob(f"{'[0-9]' * 5}.{ending}"):
                    old.unlink()
            index.write(self.folder)
            return index
        found = read_index(self.folder)
        if found.differs(index):
            raise StoreError(
                f"{self.folder} holds a store of another job ({found.differs(index)}); "
                "choose another folder or pass --overwrite"
            )
        return found

    def add(self, acts: Float[Tensor, "b t d"], rows: list[Row]) -> None:
        """Raises DataError when the activations hold NaN or infinity, naming the image."""
        # a copy: a view of a few tokens would keep all of them in memory
        stored = acts.to("cpu", DTYPES[self.index.dtype], copy=True)
        self._check_finite(stored, rows)
        self._acts.append(stored)
        self._rows += rows
        while len(self._rows) >= self.shard_images:
            self._write_shard(self.shard_images)

    def skip(self, row: Row, reason: str) -> None:
        """Count and name an image that could not be read."""
        self._skipped.append((row.position, f"{row.key}: {reason}"))

    def finish(self) -> StoreIndex:
        """Write what is left and mark the store complete. Raises DataError when it is empty."""
        if self._rows:
            self._write_shard(len(self._rows))
        if not self.index.images:
            raise DataError(f"no readable image: all {len(self._skipped)} were skipped")
        skipped = self.index.skipped + [text for _, text in self._skipped]
        self._update(skipped=skipped, complete=True)
        return self.index

    def _check_finite(self, acts: Tensor, rows: list[Row]) -> None:
        bad = ~acts.flatten(1).isfinite().all(1)
        if bool(bad.any()):
            keys = [rows[i].key for i in bad.nonzero()[:, 0].tolist()]
            raise DataError(
                f"NaN or infinity in the activations of {len(keys)} images, first {keys[0]!r}, "
                f"at site {self.index.provenance.site!r}, as {self.index.dtype}"
            )

    def _write_shard(self, images: int) -> None:
        acts = torch.cat(self._acts)
        rows, self._rows = self._rows[:images], self._rows[images:]
        self._acts = [acts[images:].clone()]
        name = f"{len(self.index.shards):05d}"
        about = {
            "positions": [row.position for row in rows],
            "keys": [row.key for row in rows],
            "about": [row.about for row in rows],
        }
        write_json(self.folder / f"{name}.json", about)
        digest = write_tensors(self.folder / f"{name}.safetensors", {"activations": acts[:images]})
        shard = Shard(name=name, images=len(rows), sha256=digest)
        self._close_shard(shard, seen=rows[-1].position + 1)

    def _close_shard(self, shard: Shard, seen: int) -> None:
        """Images still in memory, and broken ones seen after them, are read again on resume."""
        passed = [text for position, text in self._skipped if position < seen]
        self._skipped = [entry for entry in self._skipped if entry[0] >= seen]
        skipped = self.index.skipped + passed
        self._update(shards=[*self.index.shards, shard], skipped=skipped, seen=seen)

    def _update(self, **changes: Any) -> None:
        self.index = self.index.model_copy(update=changes)
        self.index.write(self.folder)
