"""Write a store shard by shard; a kill at any moment leaves whole shards."""

import fcntl
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import DataError, StoreError, claim_folder
from vision_sae.files import write_json, write_tensors
from vision_sae.parallel import ALONE, Group
from vision_sae.store.index import (
    DTYPES,
    INDEX,
    Row,
    Shard,
    Sidecar,
    StoreIndex,
    checksum,
    finished_shards,
    gathered,
    read_index,
)

SHARD_BYTES = 64 * 2**20


class StoreWriter:
    """Collects rows, in order of their positions, into shards of about `shard_bytes`.

    Opening a folder that holds an unfinished store of the same job resumes it: `missing` says which
    shards there are still to write; rows of others are passed over. Shards are written by a thread
    of their own while the next one is filled. The processes of a `group` share a store; other
    writers are locked out.
    Raises OutputExists for a folder with something else in it, StoreError for a store of another
    job, or one that is being written.
    """

    def __init__(
        self,
        folder: Path,
        index: StoreIndex,
        *,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
        group: Group = ALONE,
    ) -> None:
        self.folder, self.group = folder, group
        self._lock: _Lock | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: Future[None] | None = None
        if group.rank == 0:
            claim_folder(folder, INDEX, overwrite=overwrite)
            self._lock = _Lock(folder)
            try:
                self._begin(index, shard_bytes, overwrite)
            except BaseException:
                self.close()
                raise
        group.total(0)  # all wait until the folder is theirs
        self.index = read_index(folder)
        self._buffers: list[Tensor] = []
        self._shard: int | None = None
        self._done = set(finished_shards(folder))
        self._empty()

    def _begin(self, index: StoreIndex, shard_bytes: int, overwrite: bool) -> None:
        if overwrite or not (self.folder / INDEX).exists():
            _clear(self.folder)
            chunk = index.chunk or max(1, shard_bytes // index.image_bytes)
            index.model_copy(update={"chunk": chunk}).write(self.folder)
            return
        reason = read_index(self.folder).differs(index)
        if reason:
            raise StoreError(
                f"{self.folder} holds a store of another job ({reason}); "
                "choose another folder or pass --overwrite"
            )

    @property
    def missing(self) -> list[int]:
        """The shards that are not there yet, of a source whose length is known."""
        if self.index.complete:
            return []
        shards = -(-(self.index.source_images or 0) // self.index.chunk)
        return [number for number in range(shards) if number not in self._done]

    def add(self, acts: Float[Tensor, "b t d"], rows: list[Row]) -> None:
        """Copy some images' activations, without waiting for a GPU that still computes them.

        Raises DataError for another shape than the index says (images of several sizes), and
        for NaN or infinity, naming the image, once the shard is written.
        """
        said = (self.index.tokens_per_image, self.index.width)
        if tuple(acts.shape[1:]) != said:
            raise DataError(
                f"{rows[0].key!r} gives {tuple(acts.shape[1:])} tokens x width at site "
                f"{self.index.provenance.site!r}; the store holds {said}: all images must be "
                "prepared to one size"
            )
        for first, last in _runs([row.position // self.index.chunk for row in rows]):
            if self._turn_to(rows[first]):
                self._fill(acts[first:last], rows[first:last])

    def skip(self, row: Row, reason: str) -> None:
        """Count and name an image that could not be read."""
        if self._turn_to(row):
            self._skipped.append(f"{row.key}: {reason}")

    def flush(self) -> None:
        """Write what has been collected, as a whole shard, and wait until it is on the disk."""
        self._hand_over()
        self._wait()

    def finish(self) -> StoreIndex:
        """Write what is left and mark the store complete, unless shards of others are missing.

        Raises DataError when it is empty.
        """
        try:
            if not self.index.complete:
                self.flush()
                self.group.total(0)  # the others have written theirs
                if self.group.rank == 0:
                    self._complete()
                self.group.total(0)
                self.index = read_index(self.folder)
        finally:
            self.close()
        return self.index

    def close(self) -> None:
        """Let go of the folder; what was not flushed is lost."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._lock:
            self._lock.release()

    def _complete(self) -> None:
        index, self._done = gathered(self.folder, self.index), set(finished_shards(self.folder))
        if not index.images:
            raise DataError(f"no readable image: all {len(index.skipped)} were skipped")
        index.model_copy(update={"complete": not self.missing}).write(self.folder)

    def _turn_to(self, row: Row) -> bool:
        """Begin the row's shard, when it is another one; False when it is on the disk already."""
        number = row.position // self.index.chunk
        if number != self._shard:
            self._hand_over()
            self._shard = number
        return number not in self._done

    def _empty(self) -> None:
        self._rows: list[Row] = []
        self._skipped: list[str] = []

    def _fill(self, acts: Tensor, rows: list[Row]) -> None:
        if not self._rows:
            self._buffer = self._buffers.pop() if self._buffers else self._new_buffer()
        stored = self._buffer[len(self._rows) : len(self._rows) + len(acts)]
        stored.copy_(acts, non_blocking=True)
        self._rows += rows

    def _new_buffer(self) -> Tensor:
        i = self.index
        shape = (i.chunk, i.tokens_per_image, i.width)
        return torch.empty(shape, dtype=DTYPES[i.dtype], pin_memory=torch.cuda.is_available())

    def _check_finite(self, stored: Tensor, rows: list[Row]) -> None:
        if bool(stored.sum(dtype=torch.float32).isfinite()):  # one pass, and nothing is written
            return
        bad = ~stored.flatten(1).isfinite().all(1)
        if not bool(bad.any()):  # large ones, whose sum alone is infinite
            return
        keys = [rows[i].key for i in bad.nonzero()[:, 0].tolist()]
        raise DataError(
            f"NaN or infinity in the activations of {len(keys)} images, first {keys[0]!r}, "
            f"at site {self.index.provenance.site!r}, as {self.index.dtype}"
        )

    def _hand_over(self) -> None:
        """Give the shard to the thread; the one before it is on the disk then."""
        self._wait()
        if self._shard is None or self._shard in self._done:
            return
        buffer = self._buffer if self._rows else None
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies have arrived
        job = (self._shard, buffer, self._rows, self._skipped)
        self._pending = self._pool.submit(self._write, *job)
        self._done.add(self._shard)
        self._shard = None
        self._empty()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        try:
            if pending:
                pending.result()
        except BaseException:
            self.close()
            raise

    def _write(
        self, number: int, buffer: Tensor | None, rows: list[Row], skipped: list[str]
    ) -> None:
        name = f"{number:05d}"
        shard = None
        if buffer is not None:
            self._check_finite(buffer[: len(rows)], rows)
            path = self.folder / f"{name}.safetensors"
            write_tensors(path, {"activations": buffer[: len(rows)]})
            size = path.stat().st_size
            shard = Shard(name=name, images=len(rows), checksum=checksum(path), bytes=size)
            self._buffers.append(buffer)
        side = Sidecar(
            shard=shard,
            positions=[row.position for row in rows],
            keys=[row.key for row in rows],
            about=[row.about for row in rows],
            skipped=skipped,
        )
        write_json(self.folder / f"{name}.json", side.model_dump())


def _runs(numbers: list[int]) -> Iterable[tuple[int, int]]:
    """Where equal neighbours begin and end."""
    edges = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1]]
    return zip([0, *edges], [*edges, len(numbers)], strict=True) if numbers else ()


class _Lock:
    """A folder held until released, or until the process ends."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError when another writer holds it."""
        self._handle: int | None = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise StoreError(
                f"another process is writing the store {folder}; wait until it is done, or choose "
                "another folder"
            ) from error

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None

    __del__ = release


def _clear(folder: Path) -> None:
    (folder / INDEX).unlink(missing_ok=True)  # first: it must not name what is gone
    for old in folder.glob("[0-9]*"):
        if old.stem.isdecimal() and old.suffix in (".json", ".safetensors"):
            old.unlink()
