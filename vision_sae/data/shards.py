"""WebDataset shards: `shards/{000..009}.tar`, `shards/*.tar.gz`, `https://...`, `pipe:...`."""

import copy
import glob
import json
import os
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from vision_sae.data.indexed import permutation, shuffled_name
from vision_sae.data.rgb import ENDINGS as IMAGE_ENDINGS
from vision_sae.data.rgb import to_rgb
from vision_sae.data.shard import Shard, said_lengths
from vision_sae.data.source import Gives, Item
from vision_sae.data.streams import is_stream
from vision_sae.data.tar_rows import Row
from vision_sae.errors import DataError, require

ENDINGS = (".tar", ".tar.gz", ".tgz")


class ShardSource:
    """The rows that hold an image, shard by shard; keys are the shards' own.

    `about` is the row's .json, with its .cls as `label` and its .txt as `caption`. The length of
    shards behind addresses is read from a sizes.json beside them, else, as that of pipes, found by
    reading them once. Raises DataError for a shard that is missing, cut off or damaged, that holds
    another number of images than its sizes.json says, and when there is no image at all.
    """

    gives: Gives = "images"

    def __init__(self, pattern: str) -> None:
        place = _file_path(pattern) if pattern.startswith("file:") else pattern
        self.name = place if is_stream(place) else _absolute(os.path.expanduser(place))
        places = _find(self.name)
        lengths = said_lengths(places)
        self.shards = [Shard(p, n) for p, n in zip(places, lengths, strict=True)]
        if not any(True for shard in self.shards for _ in shard.rows()):
            raise DataError(f"no images in {pattern}; looked for {', '.join(IMAGE_ENDINGS)}")

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def items(self, start: int = 0) -> Iterator[Item]:
        for shard in self.shards:
            if start and len(shard) <= start:
                start -= len(shard)
                continue
            for row in shard.rows(start):
                about = _about(row, shard.place)
                yield Item(row.key, about, partial(_decode, row.files[row.image], row.key))
            start = 0

    def reordered(self, seed: int) -> "ShardSource":
        """The shards in an order drawn from `seed`, each from front to back, as tar files want.

        Raises ConfigError for a negative seed.
        """
        other = copy.copy(self)  # shares the shards, and so their lengths
        other.name = shuffled_name(self.name, seed)
        other.shards = [self.shards[i] for i in permutation(len(self.shards), seed)]
        return other


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


def _file_path(address: str) -> str:
    """The path of `file:///x.tar`, `file:/x.tar`, `file:x.tar` or, as people write, `file://x.tar`."""
    parts = urlparse(address)
    return url2pathname(parts.netloc.removeprefix("localhost") + parts.path)


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
    named = _braces(pattern)
    if is_stream(pattern):
        return named
    found = {name: [name] if os.path.isfile(name) else sorted(glob.glob(name)) for name in named}
    missing = [name for name, files in found.items() if not files]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"no shard at {', '.join(missing[:3])}{more}; local shards are {', '.join(ENDINGS)} "
            "files, as one path, with braces as in {000..009}.tar, or with *"
        )
    return [file for files in found.values() for file in files]


def _braces(pattern: str) -> list[str]:
    try:
        return list(require("braceexpand", "images").braceexpand(pattern))
    except ValueError as error:  # unbalanced
        raise DataError(f"{pattern!r} has braces that do not match: {error}") from error
