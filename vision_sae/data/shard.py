"""One WebDataset shard: its rows from any number on, and how many there are."""

import json
import logging
import sys
from array import array
from collections import deque
from collections.abc import Iterator
from typing import Any

from vision_sae.data.streams import PIPE, is_stream, streamed
from vision_sae.data.tar_rows import Row, rows, seekable
from vision_sae.errors import DataError

log = logging.getLogger(__name__)

EVERY = 64  # of so many rows one offset is kept
SIZES = "sizes.json"  # {"000.tar": 1000, ...} beside the shards, as open_clip's training reads it


def said_lengths(places: list[str]) -> list[int | None]:
    """What the sizes.json beside streamed shards says of their lengths, without which each has to
    be read once to count its images; None where it says nothing.
    """
    folders = {place.rpartition("/")[0] for place in places if _has_folder(place)}
    said = {folder: _sizes(f"{folder}/{SIZES}") for folder in sorted(folders)}
    parts = [place.rpartition("/") for place in places]
    found = [said.get(folder, {}).get(name) for folder, _, name in parts]
    return [n if isinstance(n, int) and n >= 0 else None for n in found]


def _has_folder(place: str) -> bool:
    return is_stream(place) and not place.startswith(PIPE)


def _sizes(address: str) -> dict[str, Any]:
    try:
        with streamed(address) as file:
            found = json.loads(file.read())
    except (OSError, EOFError, ValueError, DataError):
        return {}
    return found if isinstance(found, dict) else {}


class Shard:
    """A tar file, local or streamed.

    A pass over it leaves its length, and for an uncompressed local file offsets to begin at. A
    `length` that was said before is held against what a pass finds: DataError where they differ.
    """

    def __init__(self, place: str, length: int | None = None) -> None:
        self.place = place
        self._length, self._said = length, length
        self._offsets = array("q")  # of rows 0, EVERY, 2 EVERY, ...

    def __len__(self) -> int:
        """Reads the headers, once; of a stream that is all of it."""
        if self._length is None:
            if is_stream(self.place):
                log.info("reading all of %s once, to count its images", self.place)
            deque(self.rows(sys.maxsize), maxlen=0)
        assert self._length is not None
        return self._length

    def rows(self, start: int = 0) -> Iterator[Row]:
        """The rows from number `start` on; the bytes of those before are not read."""
        known = min(start // EVERY, len(self._offsets) - 1)
        number, offset = (known * EVERY, self._offsets[known]) if known > 0 else (0, 0)
        for row in rows(self.place, start, number, offset):
            self._note(number, row)
            number += 1
            if number > start:
                yield row
        if self._said not in (None, number):
            raise DataError(f"{self.place} holds {number} images; {SIZES} says {self._said}")
        self._length = number

    def _note(self, number: int, row: Row) -> None:
        wanted = number == EVERY * len(self._offsets)
        if wanted and row.offset is not None and seekable(self.place):
            self._offsets.append(row.offset)
