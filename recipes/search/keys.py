"""The keys of many images on disk: one string of bytes, found by halving a sorted order.

A list of a million Python strings takes a second to read and 80 MB to hold; this takes neither.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from vision_sae.errors import UnknownName

NEAR = 50  # keys on each side of where a missing one would stand, among which near matches are


def key_arrays(keys: Sequence[str]) -> dict[str, Tensor]:
    """What `Keys` reads: all bytes, where each key starts, and the numbers in sorted order."""
    encoded = [key.encode() for key in keys]
    order = sorted(range(len(keys)), key=encoded.__getitem__)
    joined = bytearray(b"".join(encoded)) or bytearray(1)  # no tensor is made of nothing
    return {
        "key_bytes": torch.frombuffer(joined, dtype=torch.uint8),
        "key_start": torch.tensor([0, *accumulate(map(len, encoded))]),
        "key_order": torch.tensor(order, dtype=torch.int64),
    }


class Keys(Sequence[str]):
    """The keys by number, and the number of a key."""

    def __init__(
        self, data: UInt8[Tensor, " b"], start: Int[Tensor, " n_plus_1"], order: Int[Tensor, " n"]
    ) -> None:
        self._data, self._start, self._order = data, start, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        return self._bytes(range(len(self))[number]).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def _bytes(self, number: int) -> bytes:
        first, last = self._start[number : number + 2].tolist()
        return bytes(self._data[first:last].tolist())

    def number(self, key: str) -> int:
        """Which image has a key. Raises UnknownName, with matches from its neighbourhood."""
        wanted = key.encode()
        place = bisect_left(range(len(self)), wanted, key=self._sorted)
        if place < len(self) and self._sorted(place) == wanted:
            return int(self._order[place])
        near = range(max(0, place - NEAR), min(len(self), place + NEAR))
        raise UnknownName("image", key, [self._sorted(i).decode() for i in near])

    def _sorted(self, place: int) -> bytes:
        return self._bytes(int(self._order[place]))
