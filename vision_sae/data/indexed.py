"""Sources with random access: item i without the ones before, and so any order of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from vision_sae.data.source import Gives, Item
from vision_sae.errors import ConfigError

SHUFFLED = "shuffled"  # `shuffled:7:photos` names the items of photos in the order of seed 7


class IndexedSource(ABC):
    """A source that is written by its length and its item i; the rest of ImageSource follows."""

    name: str
    gives: Gives = "images"

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def item(self, i: int) -> Item:
        """Item number i, not yet decoded."""

    def items(self, start: int = 0) -> Iterator[Item]:
        for i in range(start, len(self)):
            yield self.item(i)

    def reordered(self, seed: int) -> "IndexedSource":
        """The same items in an order drawn from `seed`. Raises ConfigError for a negative one."""
        return Reordered(self, seed)


class Reordered(IndexedSource):
    """A full permutation of a source's items, which keep their keys; 8 bytes an item."""

    def __init__(self, source: IndexedSource, seed: int) -> None:
        self.name, self.gives = shuffled_name(source.name, seed), source.gives
        self._source, self._order = source, permutation(len(source), seed)

    def __len__(self) -> int:
        return len(self._order)

    def item(self, i: int) -> Item:
        return self._source.item(int(self._order[i]))


def permutation(size: int, seed: int) -> Any:
    """The numbers below `size` in an order drawn from `seed`, an int array [size]."""
    if seed < 0:
        raise ConfigError(f"the seed of an order must be 0 or more; got {seed}")
    return np.random.default_rng(seed).permutation(size)


def shuffled_name(name: str, seed: int) -> str:
    return f"{SHUFFLED}:{seed}:{name}"
