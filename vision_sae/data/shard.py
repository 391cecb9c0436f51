"""One WebDataset shard: its rows from any number on, and how many there are."""

import logging
import sys
from array import array
from collections import deque
from collections.abc import Iterator

from vision_sae.data.streams import is_stream
from vision_sae.data.tar_rows import Row, rows, seekable

log = logging.getLogger(__name__)

EVERY = 64  # of so many rows one offset is kept


class Shard:
    """A tar file, local or streamed.

    A pass over it leaves its length, and for an uncompressed local file offsets to begin at.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._length: int | None = None
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
        self._length = number

    def _note(self, number: int, row: Row) -> None:
        wanted = number == EVERY * len(self._offsets)
        if wanted and row.offset is not None and seekable(self.place):
            self._offsets.append(row.offset)
