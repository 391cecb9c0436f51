"""The index of a store: what the activations are, and which shards hold them.

acts/index.json            this index
acts/00000.safetensors     "activations" [images tokens width]
acts/00000.json            the images' keys and what is known of them, in the same order

Shard k holds the images at positions k * chunk to (k + 1) * chunk - 1 of the source, without those
that could not be read. It is whole as soon as its .json is there, so that any process can write any
shard, and what a dead one left out is found by looking.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import xxhash
from pydantic import AliasChoices, Field

from vision_sae.config import Frozen, Versioned, first_difference, read_settings
from vision_sae.errors import StoreError
from vision_sae.files import write_json
from vision_sae.provenance import Provenance

INDEX = "index.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DType = Literal["float32", "float16", "bfloat16"]


class Shard(Frozen):
    name: str
    images: int
    checksum: str = Field(validation_alias=AliasChoices("checksum", "sha256"))
    bytes: int  # of the file


def checksum(path: Path, like: str = "") -> str:
    """XXH3 of a shard, 128 bits as 32 digits; sha256 where it is to be `like` one, of 64 digits.

    Against decay, not against forgers. Measured seven times as fast as sha256 (which the CPU has).
    Raises StoreError for what cannot be read.
    """
    kind = hashlib.sha256 if len(like) == 64 else xxhash.xxh3_128
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, kind).hexdigest()
    except OSError as error:
        raise StoreError(f"shard {path} cannot be read: {error.strerror}") from error


class Sidecar(Frozen):
    """What stands beside a shard, in the order of its images; `shard` is None without any."""

    shard: Shard | None
    positions: list[int]  # in the source
    keys: list[str]
    about: list[dict[str, Any]]
    skipped: list[str] = []


class StoreIndex(Versioned):
    """`chunk` is the number of source positions that share a shard; 0: the writer's choice."""

    schema_number: int = 3
    older: ClassVar[tuple[int, ...]] = (2,)  # whose shards have a sha256
    provenance: Provenance
    dtype: DType
    width: int
    tokens_per_image: int
    prefix_tokens: int  # of tokens_per_image, those that stand before the patches
    grid: tuple[int, int] | None
    chunk: int = Field(0, ge=0)
    source_images: int | None = None  # of the whole source, where that is known
    shards: list[Shard] = []
    skipped: list[str] = []
    complete: bool = False

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    @property
    def row_bytes(self) -> int:
        """Of one vector."""
        return self.width * DTYPES[self.dtype].itemsize

    @property
    def image_bytes(self) -> int:
        """Of the activations of one image."""
        return self.tokens_per_image * self.row_bytes

    def differs(self, other: "StoreIndex") -> str | None:
        """What makes another run's rows not fit in, in words; None when nothing does."""
        shape = ("dtype", "width", "tokens_per_image", "prefix_tokens", "grid")
        known = self.provenance.sampler and other.provenance.sampler  # older stores do not say
        names = ["data", "timesteps", *(["sampler"] if known else [])]
        return (
            self.provenance.differs(other.provenance)
            or first_difference(self, other, shape)
            or first_difference(self.provenance, other.provenance, names)
        )

    def write(self, folder: Path) -> None:
        write_json(folder / INDEX, self.model_dump())


def read_index(folder: Path) -> StoreIndex:
    """Raises StoreError when there is no store, or one of another schema."""
    path = folder / INDEX
    if not path.exists():
        raise StoreError(f"{folder} is no activation store: it has no {INDEX}")
    return read_settings(StoreIndex, path, StoreError)


def finished_shards(folder: Path) -> dict[int, Path]:
    """The .json of each shard that is whole, by number."""
    found = (p for p in folder.glob("[0-9]*.json") if p.stem.isdecimal())
    return {int(path.stem): path for path in sorted(found, key=lambda p: int(p.stem))}


def read_sidecar(path: Path) -> Sidecar:
    """Raises StoreError for what is no sidecar."""
    try:
        return Sidecar.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def gathered(folder: Path, index: StoreIndex) -> StoreIndex:
    """The index with all shards that are whole by now."""
    sidecars = [read_sidecar(path) for path in finished_shards(folder).values()]
    shards = [side.shard for side in sidecars if side.shard]
    skipped = [line for side in sidecars for line in side.skipped]
    return index.model_copy(update={"shards": shards, "skipped": skipped})


class Row(NamedTuple):
    """An image of the source: its position there, its key, and what is known of it."""

    position: int
    key: str
    about: dict[str, Any]
