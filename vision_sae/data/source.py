"""Where images come from: an ordered, repeatable stream of items that are decoded when asked."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol


class Item(NamedTuple):
    """One image, not yet decoded. `open` gives an RGB PIL image or raises DataError."""

    key: str
    about: dict[str, Any]
    open: Callable[[], Any]


class ImageSource(Protocol):
    """An ordered stream; two passes give the same items in the same order.

    `name` is the text that `open_data` turns into this source again.
    """

    name: str

    def __len__(self) -> int: ...

    def items(self, start: int = 0) -> Iterator[Item]:
        """Items from position `start` on, without decoding the ones before."""
        ...
