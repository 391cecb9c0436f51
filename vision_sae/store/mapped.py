"""The shard files of a store, mapped into memory and checked against their checksums."""

from collections import OrderedDict
from pathlib import Path
from threading import Lock, Thread

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vision_sae.errors import StoreError
from vision_sae.store.index import DTYPES, Shard, StoreIndex, checksum

LARGE = 2**32  # bytes; checking more than this before the first batch would take minutes
MAPS = 2**14  # shards mapped at a time; mapped files are closed, and Linux allows 65,530 maps


class Shards:
    """A store's shard files [images tokens width], mapped and verified when they are first read.

    Threads may share it. The least recently read of more than `MAPS` is mapped anew when needed.
    """

    def __init__(self, folder: Path, index: StoreIndex, verify: bool) -> None:
        self.shards, self.tokens = index.shards, index.tokens_per_image
        images = torch.tensor([shard.images for shard in self.shards])
        self.row_ends = images.cumsum(0) * self.tokens
        self.shape, self.dtype = (index.tokens_per_image, index.width), DTYPES[index.dtype]
        self.paths = [folder / f"{shard.name}.safetensors" for shard in index.shards]
        self.unverified = set(range(len(self.paths))) if verify else set()
        self.maps: OrderedDict[int, Tensor] = OrderedDict()
        self.lock = Lock()
        self.checking: Thread | None = None
        self.bad: StoreError | None = None
        self.large = sum(shard.bytes for shard in self.shards) > LARGE
        for path, shard in zip(self.paths, self.shards, strict=True):
            _check_size(path, shard)

    def __getitem__(self, number: int) -> Tensor:
        with self.lock:
            if self.unverified and self.large:
                self._check_meanwhile()
            if number not in self.maps:
                if number in self.unverified and not self.large:
                    self.verify(number)
                self.maps[number] = self._map(number)
                if len(self.maps) > MAPS:
                    self.maps.popitem(last=False)
            self.maps.move_to_end(number)
            return self.maps[number]

    def _check_meanwhile(self) -> None:
        """Let a thread read every shard; raise what it has found."""
        if self.checking is None:
            self.checking = Thread(target=self._check_all, name="check", daemon=True)
            self.checking.start()
        if self.bad:
            raise self.bad

    def _check_all(self) -> None:
        try:
            for number in range(len(self.shards)):
                self.verify(number)
        except StoreError as error:
            self.bad = error

    def verify(self, number: int) -> None:
        path, said = self.paths[number], self.shards[number].checksum
        if checksum(path, like=said) != said:
            raise _corrupt(path, "its checksum is not the one in the index")
        self.unverified.discard(number)

    def _map(self, number: int) -> Tensor:
        path, shape = self.paths[number], (self.shards[number].images, *self.shape)
        try:
            with safe_open(path, framework="pt") as file:
                acts: Tensor = file.get_tensor("activations")
        except (SafetensorError, OSError) as error:
            raise _corrupt(path, str(error)) from error
        if tuple(acts.shape) != shape or acts.dtype != self.dtype:
            held = f"{tuple(acts.shape)} {acts.dtype}"
            raise _corrupt(path, f"it holds {held}, the index says {shape} {self.dtype}")
        return acts


def _check_size(path: Path, shard: Shard) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise StoreError(f"shard {path} is missing; run extract again with --overwrite") from error
    if size != shard.bytes:
        raise _corrupt(path, f"it has {size:,} bytes, the index says {shard.bytes:,}")


def _corrupt(path: Path, why: str) -> StoreError:
    return StoreError(f"shard {path} is corrupt ({why}); run extract again with --overwrite")
