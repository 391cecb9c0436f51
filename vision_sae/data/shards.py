"""WebDataset shards on local disks: `shards/{000..009}.tar`, `shards/*.tar.gz`."""

import glob
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Any

from vision_sae.data.rgb import ENDINGS as IMAGE_ENDINGS
from vision_sae.data.rgb import to_rgb
from vision_sae.data.source import Item
from vision_sae.data.tar_rows import Row, rows
from vision_sae.errors import DataError, require

ENDINGS = (".tar", ".tar.gz", ".tgz")
HEADERS_ONLY = sys.maxsize


class ShardSource:
    """The rows that hold an image, shard by shard; keys are the shards' own.

    `about` is the row's .json, with its .cls as `label` and its .txt as `caption`. Raises DataError
    for a shard that is missing, cut off or damaged, and when there is no image at all.
    """

    def __init__(self, pattern: str) -> None:
        self.name = _absolute(os.path.expanduser(pattern))
        self.shards = _find(self.name)
        self._counts: dict[str, int] = {}
        if not any(True for shard in self.shards for _ in rows(shard, HEADERS_ONLY)):
            raise DataError(f"no images in {pattern}; looked for {', '.join(IMAGE_ENDINGS)}")

    def __len__(self) -> int:
        return sum(self._count(shard) for shard in self.shards)

    def items(self, start: int = 0) -> Iterator[Item]:
        for shard in self.shards:
            if start and self._count(shard) <= start:
                start -= self._count(shard)
                continue
            for row in islice(rows(shard, start), start, None):
                yield Item(
                    row.key, _about(row, shard), partial(_decode, row.files[row.image], row.key)
                )
            start = 0

    def _count(self, shard: str) -> int:
        """Reads a shard's headers, once."""
        if shard not in self._counts:
            self._counts[shard] = sum(1 for _ in rows(shard, HEADERS_ONLY))
        return self._counts[shard]


def _decode(image: bytes, key: str) -> Any:
    return to_rgb(BytesIO(image), key)


def _about(row: Row, shard: str) -> dict[str, Any]:
    """A row's .json, .cls and .txt; what is no JSON object goes under `json`."""
    try:
        found = json.loads(row.files.get("json", b"{}"))
        about: dict[str, Any] = found if isinstance(found, dict) else {"json": found}
        for ending, name in (("cls", "label"), ("txt", "caption")):
            if ending in row.files:
                about[name] = row.files[ending].decode().strip()
    except ValueError as error:  # no JSON, or no UTF-8
        raise DataError(f"{shard}: the texts of {row.key!r} cannot be read: {error}") from error
    return about


def _absolute(pattern: str) -> str:
    """Put the working folder before a relative pattern, its own * and { taken literally."""
    if os.path.isabs(pattern):
        return pattern
    if os.path.isfile(pattern):
        return os.path.abspath(pattern)
    here = glob.escape(os.getcwd()).replace("{", "\\{").replace("}", "\\}")
    return os.path.join(here, pattern)


def _find(pattern: str) -> list[str]:
    """Braces in their order, globs sorted. Raises DataError when a part matches no file."""
    if os.path.isfile(pattern):
        return [pattern]
    try:
        named = list(require("braceexpand", "images").braceexpand(pattern))
    except ValueError as error:  # unbalanced braces
        raise DataError(f"{pattern!r} has braces that do not match: {error}") from error
    found = {name: [name] if os.path.isfile(name) else sorted(glob.glob(name)) for name in named}
    missing = [name for name, files in found.items() if not files]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"no shard at {', '.join(missing[:3])}{more}; shards are local files, "
            f"{', '.join(ENDINGS)}, as one path, with braces as in {{000..009}}.tar, or with *"
        )
    return [file for files in found.values() for file in files]
