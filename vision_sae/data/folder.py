"""A folder of images, or a folder with one sub-folder of images per class."""

import logging
import os
from collections import Counter
from functools import partial
from typing import Any

from vision_sae.data.indexed import IndexedSource
from vision_sae.data.rgb import ENDINGS, to_rgb
from vision_sae.data.source import Item
from vision_sae.errors import DataError

log = logging.getLogger(__name__)


class FolderSource(IndexedSource):
    """Images in order of class and file name; a class-per-folder tree gives about["label"].

    Keys are file names without endings, `cat/001` in a tree. Raises DataError without any image.
    """

    def __init__(self, folder: str) -> None:
        self.name = os.path.abspath(os.path.expanduser(folder))
        loose = _image_names(self.name)
        classes = {
            c: names for c in _folder_names(self.name) if (names := _images_of(self.name, c))
        }
        if classes and loose:
            log.warning(
                "%s has class folders; %d images beside them are left out", folder, len(loose)
            )
        self._rows = [
            (_join(label, key), _join(label, name))
            for label, names in (classes or {"": loose}).items()
            for key, name in zip(_keys(names), names, strict=True)
        ]
        self._labelled = bool(classes)
        if not self._rows:
            raise DataError(
                f"no images in {self.name} or its sub-folders (deeper ones are not read); "
                f"looked for {', '.join(ENDINGS)}"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def item(self, i: int) -> Item:
        key, path = self._rows[i]
        about: dict[str, Any] = {"label": os.path.dirname(path)} if self._labelled else {}
        return Item(key, about, partial(to_rgb, os.path.join(self.name, path), key))


def _join(label: str, name: str) -> str:
    return f"{label}/{name}" if label else name


def _folder_names(folder: str) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def _images_of(folder: str, name: str) -> list[str]:
    return _image_names(os.path.join(folder, name))


def _image_names(folder: str) -> list[str]:
    """Sorted; hidden files are left out, such as macOS's ._001.jpg, which is no image."""
    names = [e.name for e in os.scandir(folder) if e.is_file() and not e.name.startswith(".")]
    return sorted(name for name in names if name.lower().endswith(ENDINGS))


def _keys(names: list[str]) -> list[str]:
    """Names without endings; the ending stays where two keys would be the same."""
    stems = [os.path.splitext(name)[0] for name in names]
    # names count too: the stem of a.png.jpg is the full name of a.png
    taken = Counter(stems) + Counter(names)
    return [s if taken[s] == 1 else name for s, name in zip(stems, names, strict=True)]
