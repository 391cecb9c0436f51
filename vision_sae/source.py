"""Where training gets rows from."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor

Batch = Tensor | tuple[Tensor, Tensor]  # rows [n d], or a transcoder's rows and targets [n o]


@runtime_checkable
class Source(Protocol):
    """A Store, a MemoryStore around a tensor, or anything that gives rows in a seeded order.

    Batch i is a function of (seed, i). With `part=(rank, size)` only rows rank, rank + size, ... of
    each batch are given; `sample` is the same for all processes. A source of pairs has a
    `width_out`, and one that can say where a row of a batch came from, which `parts` processes
    share, a method `locate(size, seed, batch, row, parts) -> str`.
    """

    @property
    def rows(self) -> int: ...

    @property
    def width(self) -> int: ...

    def batches(
        self, size: int, *, seed: int = 0, start: int = 0, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]: ...

    def sample(self, n: int, *, seed: int = 0) -> Batch: ...


def pair(batch: Batch) -> tuple[Tensor, Tensor]:
    """Rows and targets; rows are their own targets where there are no others."""
    return batch if isinstance(batch, tuple) else (batch, batch)
