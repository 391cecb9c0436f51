"""Files that are either whole or absent: written under a temporary name, synced, then renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vision_sae.errors import PARTIAL, StoreError


def write_bytes(path: Path, data: bytes) -> None:
    """Raises StoreError when the disk is full or the folder cannot be written."""
    with whole(path, len(data)) as partial:
        partial.write_bytes(data)


@contextmanager
def whole(path: Path, size: int) -> Iterator[Path]:
    """Another name to write to; at the end of the block it is synced and takes its own."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise StoreError(
            f"could not write {path} ({size:,} bytes): {getattr(error, 'strerror', '') or error}; "
            "what was finished before is intact, run the same command again to go on"
        ) from error


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write safetensors."""
    held = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with whole(path, sum(t.nbytes for t in held.values())) as partial:
        save_file(held, partial)  # from memory as it stands: `save` would copy all of it


def check_space(folder: Path, needed: int) -> None:
    """Raises StoreError when the disk of a folder cannot hold so many bytes more."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder} would take {size(needed)} and its disk has {size(free)} free: choose "
            "another disk, --dtype float16, fewer tokens or timesteps, or train from the stream, "
            "which stores nothing"
        )


def size(count: float) -> str:
    """Bytes as people read them: 1.3 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, under the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
