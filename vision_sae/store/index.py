"""The index of a store: what the activations are, and which shards hold them.

acts/index.json            this index, rewritten after each shard
acts/00000.safetensors     "activations" [images tokens width]
acts/00000.json            the images' keys and what is known of them, in the same order
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

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
    sha256: str


class StoreIndex(Versioned):
    """`seen` is the position in the source at which a resumed run goes on."""

    provenance: Provenance
    dtype: DType
    width: int
    tokens_per_image: int
    prefix_tokens: int  # of tokens_per_image, those that stand before the patches
    grid: tuple[int, int] | None
    shards: list[Shard] = []
    seen: int = 0
    skipped: list[str] = []
    complete: bool = False

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    def differs(self, other: "StoreIndex") -> str | None:
        """What makes another run's rows not fit in, in words; None when nothing does."""
        shape = ("dtype", "width", "tokens_per_image", "prefix_tokens", "grid")
        return (
            self.provenance.differs(other.provenance)
            or first_difference(self, other, shape)
            or first_difference(self.provenance, other.provenance, ["data"])
        )

    def write(self, folder: Path) -> None:
        write_json(folder / INDEX, self.model_dump())


def read_index(folder: Path) -> StoreIndex:
    """Raises StoreError when there is no store, or one of another schema."""
    path = folder / INDEX
    if not path.exists():
        raise StoreError(f"{folder} is no activation store: it has no {INDEX}")
    return read_settings(StoreIndex, path, StoreError)


class Row(NamedTuple):
    """An image of the source: its position there, its key, and what is known of it."""

    position: int
    key: str
    about: dict[str, Any]
