"""Bytes through any address or pipe that webdataset opens, read once from front to back."""

import contextlib
import gzip
import io
import re
import subprocess
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from vision_sae.errors import DataError, require

PIPE = "pipe:"


def is_stream(place: str) -> bool:
    """Whether this is an address (`https://...`, `gs://...`) or a command (`pipe:...`)."""
    return place.startswith(PIPE) or re.match(r"[a-z][a-z0-9+.-]*://", place) is not None


@contextlib.contextmanager
def streamed(place: str) -> Iterator[BinaryIO]:
    """The bytes behind an address or a command, without gzip when they come in it.

    Raises DataError for an address that webdataset does not open; OSError, while reading, when the
    command behind it fails, EOFError when gzip is cut off.
    """
    raw = _Raw(_open(place))
    try:
        file = io.BufferedReader(raw)
        if file.peek(2)[:2] == b"\x1f\x8b":
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file))
        else:
            yield file
    finally:
        raw.close()


def _open(place: str) -> Any:
    library = require("webdataset.gopen", "images")
    try:
        return library.gopen(place)
    except ValueError as error:
        schemes = sorted(set(library.gopen_schemes) - {"__default__", "pipe"})
        raise DataError(
            f"webdataset does not open {place} ({error}); it opens {', '.join(schemes)} addresses; "
            "for others name a command, as in `pipe:aws s3 cp s3://bucket/000.tar -`"
        ) from error


class _Raw(io.RawIOBase):
    """The end of the stream waits for the command behind it, and raises OSError if it failed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found: bytes = b"" if self._stream is None else self._stream.read(len(buffer))
        if not found:
            self._finish()
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """A command that is not done is stopped, and its complaints are not heard."""
        if isinstance(process := getattr(self._stream, "proc", None), subprocess.Popen):
            process.terminate()
        with contextlib.suppress(OSError):
            self._finish()
        super().close()

    def _finish(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
