"""Where images come from: an ordered, repeatable stream of items that are decoded when asked."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from vision_sae import plugins
from vision_sae.errors import DataError, UnknownName


class Item(NamedTuple):
    """One image, not yet decoded. `open` gives an RGB PIL image or raises DataError."""

    key: str
    about: dict[str, Any]
    open: Callable[[], Any]


@runtime_checkable
class ImageSource(Protocol):
    """An ordered stream; two passes give the same items in the same order.

    `name` is the text that `open_data` turns into this source again.
    """

    name: str

    def __len__(self) -> int: ...

    def items(self, start: int = 0) -> Iterator[Item]:
        """Items from position `start` on, without decoding the ones before."""
        ...


def open_data(spec: str) -> ImageSource:
    """A data set by name (`emoji-canvas:test`), a folder, or shards (`shards/{000..009}.tar`).

    A folder whose sub-folders hold images is a class-per-folder tree. A data set's name wins over
    a folder of the same name, which is then `./name`. Raises DataError, or what the plugin raises.
    """
    # here and not above: both import Item from this module
    from vision_sae.data.folder import FolderSource
    from vision_sae.data.shards import ENDINGS, ShardSource

    plugin, _, argument = spec.partition(":")
    if plugin in plugins.names(plugins.DATA):
        source: ImageSource = plugins.load(plugins.DATA, plugin)(argument)
        return source
    if os.path.isdir(os.path.expanduser(spec)):
        return FolderSource(spec)
    if spec.lower().endswith(ENDINGS):
        return ShardSource(spec)
    raise DataError(
        f"{spec!r} is neither a data set's name, nor a folder of images, nor a folder with a "
        f"sub-folder of images per class, nor WebDataset shards ({', '.join(ENDINGS)}): "
        f"{UnknownName('data set', plugin, plugins.names(plugins.DATA))}"
    )
