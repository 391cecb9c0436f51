"""Read a tar file as WebDataset does, but never let one that is cut off look like a short one."""

import re
import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from vision_sae.data.rgb import ENDINGS
from vision_sae.errors import DataError


class Row(NamedTuple):
    """Neighbouring members with one key: their bytes by ending, and which ending is the image."""

    key: str
    files: dict[str, bytes]
    image: str


class _Member(NamedTuple):
    key: str
    ending: str
    info: tarfile.TarInfo


def rows(shard: str, read_from: int = 0) -> Iterator[Row]:
    """The rows that hold an image; the bytes of those before number `read_from` are left empty.

    Raises DataError with the place where a tar file is cut off or damaged.
    """
    number, key = 0, ""
    try:
        with tarfile.open(shard, "r:gz" if shard.lower().endswith("gz") else "r:") as archive:
            for key, members in groupby(_members(archive), attrgetter("key")):
                files = _read(archive, members, skip=number < read_from)
                if image := _image_ending(files):
                    yield Row(key, files, image)
                    number += 1
            _check_end(archive)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        near = f", near key {key!r}" if key else ""
        raise DataError(
            f"{shard} is cut off or damaged after {number} images{near}: {error}"
        ) from error


def _members(archive: tarfile.TarFile) -> Iterator[_Member]:
    """Regular files with an ending: the key goes to the first dot of the base name."""
    for info in archive:
        folder, slash, base = info.name.rpartition("/")
        stem, _, ending = base.partition(".")
        # WebDataset keeps notes about a shard in __name__ members
        if info.isreg() and stem and ending and not re.match(r"__[^/]*__($|/)", info.name):
            yield _Member(folder + slash + stem, ending.lower(), info)


def _read(archive: tarfile.TarFile, members: Iterator[_Member], *, skip: bool) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for key, ending, info in members:
        if ending in files:
            raise tarfile.TarError(f"{key}.{ending} comes twice")
        file = None if skip else archive.extractfile(info)
        files[ending] = file.read() if file else b""
    return files


def _image_ending(files: dict[str, bytes]) -> str | None:
    """The ending of a row's image, `jpg` before `mask.jpg`."""
    images = [ending for ending in files if f".{ending}".endswith(ENDINGS)]
    return min(images, key=lambda ending: ending.count("."), default=None)


def _check_end(archive: tarfile.TarFile) -> None:
    """Zeros mark the end; tarfile also stops, silently, at a broken header or a missing one."""
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    rest = file.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the zeros that end a tar file are missing")
    while rest:
        if rest.strip(b"\0"):
            raise tarfile.ReadError("a broken header, or more data behind the end")
        rest = file.read(1 << 20)
