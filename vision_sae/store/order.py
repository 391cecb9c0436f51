"""The order in which rows are read: a permutation per epoch, a function of (seed, batch number)."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor


def shuffled(rows: int, size: int, *, seed: int, start: int) -> Iterator[Int[Tensor, " n"]]:
    """Endless batches of row numbers from batch number `start` on.

    The last rows of an epoch that do not fill a batch are left out of that epoch.
    """
    size = min(size, rows)
    per_epoch = rows // size
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start // per_epoch)
        order = torch.randperm(rows, generator=generator)
        for i in range(start % per_epoch, per_epoch):
            yield order[i * size : (i + 1) * size]
        start += per_epoch - start % per_epoch


class MemoryStore:
    """A tensor of rows [n d] read in the way of a Store."""

    def __init__(self, acts: Float[Tensor, "n d"]) -> None:
        self.all = acts
        self.rows, self.width = acts.shape

    def batches(
        self, size: int, *, seed: int = 0, start: int = 0
    ) -> Iterator[Float[Tensor, "b d"]]:
        return (self.all[i] for i in shuffled(self.rows, size, seed=seed, start=start))

    def sample(self, n: int, *, seed: int = 0) -> Float[Tensor, "m d"]:
        return next(self.batches(n, seed=seed))
