"""Read a tar file as WebDataset does, but never let one that is cut off look like a short one."""

import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from vision_sae.data.rgb import ENDINGS
from vision_sae.data.streams import is_stream, streamed
from vision_sae.errors import DataError


class Row(NamedTuple):
    """Neighbouring members with one key: their bytes by ending, and which ending is the image.

    `offset` is the byte where the row begins; None behind headers that hold for all that follows.
    """

    key: str
    files: dict[str, bytes]
    image: str
    offset: int | None


class _Member(NamedTuple):
    key: str
    ending: str
    info: tarfile.TarInfo


class _BadHeader(tarfile.ReadError):
    pass


class _Header(tarfile.TarInfo):
    """tarfile takes a header that is broken or missing for the end; here it is an error."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the zeros that end a file
            raise
        except tarfile.HeaderError as error:
            message = f"a broken header, or none where zeros should end the file ({error})"
            raise _BadHeader(message) from error


def seekable(shard: str) -> bool:
    return not is_stream(shard) and not _zipped(shard)


def rows(shard: str, read_from: int = 0, number: int = 0, offset: int = 0) -> Iterator[Row]:
    """The rows that hold an image; the bytes of those before number `read_from` are left empty.

    Begins at byte `offset`, where row `number` stands. Raises DataError with the place where a tar
    file is cut off or damaged.
    """
    key = ""
    broken: list[_BadHeader] = []
    try:
        with _opened(shard, offset) as archive:
            for key, members in groupby(_members(archive, broken), attrgetter("key")):
                row = _row(archive, key, members, skip=number < read_from)
                if row.image:
                    yield row
                    number += 1
            _check_end(archive, broken)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        near = f", near key {key!r}" if key else ""
        raise DataError(
            f"{shard} is cut off or damaged after {number} images{near}: {error}"
        ) from error


def _zipped(shard: str) -> bool:
    return shard.lower().endswith("gz")


@contextmanager
def _opened(shard: str, offset: int) -> Iterator[tarfile.TarFile]:
    if is_stream(shard):
        with streamed(shard) as file, tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as tar:
            yield tar
    elif _zipped(shard):
        with tarfile.open(shard, "r:gz", tarinfo=_Header) as tar:
            yield tar
    else:
        with open(shard, "rb") as file:
            file.seek(offset)  # a TarFile begins where its file stands
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
                yield tar


def _members(archive: tarfile.TarFile, broken: list[_BadHeader]) -> Iterator[_Member]:
    """Regular files with an ending: the key goes to the first dot of the base name.

    A bad header ends them, and is kept in `broken`, so that the row before it is whole.
    """
    try:
        for info in archive:
            folder, slash, base = info.name.rpartition("/")
            stem, _, ending = base.partition(".")
            # WebDataset keeps notes about a shard in __name__ members
            if info.isreg() and stem and ending and not re.match(r"__[^/]*__($|/)", info.name):
                yield _Member(folder + slash + stem, ending.lower(), info)
    except _BadHeader as error:
        broken.append(error)


def _row(archive: tarfile.TarFile, key: str, members: Iterator[_Member], *, skip: bool) -> Row:
    """Reads each member before the next header, as a stream must."""
    files: dict[str, bytes] = {}
    offset = None
    for _, ending, info in members:
        if ending in files:
            raise tarfile.TarError(f"{key}.{ending} comes twice")
        if not files and not archive.pax_headers:
            offset = info.offset
        file = None if skip else archive.extractfile(info)
        files[ending] = file.read() if file else b""
    return Row(key, files, _image_ending(files), offset)


def _image_ending(files: dict[str, bytes]) -> str:
    """The ending of a row's image, `jpg` before `mask.jpg`; empty without one."""
    images = [ending for ending in files if f".{ending}".endswith(ENDINGS)]
    return min(images, key=lambda ending: ending.count("."), default="")


def _check_end(archive: tarfile.TarFile, broken: list[_BadHeader]) -> None:
    """Nothing but zeros may follow; to the very end, where a command says whether it failed."""
    if broken:
        raise broken[0]
    file = archive.fileobj
    assert file is not None
    while rest := file.read(1 << 20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("more data behind the end")
