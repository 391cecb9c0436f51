"""The order in which rows are read: a permutation per epoch, a function of (seed, batch number)."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.source import Batch, Source

Part = tuple[int, int]  # (rank, size): this process among those that share each batch


def shuffled(
    rows: int, size: int, *, seed: int, start: int, part: Part = (0, 1)
) -> Iterator[Int[Tensor, " n"]]:
    """Endless batches of row numbers from batch number `start` on, or a part of each.

    The last rows of an epoch that do not fill a batch are left out of that epoch.
    """
    rank, parts = part
    size = min(size, rows)
    per_epoch = rows // size
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start // per_epoch)
        order = torch.randperm(rows, generator=generator)
        for i in range(start % per_epoch, per_epoch):
            yield order[i * size : (i + 1) * size][rank::parts].contiguous()
        start += per_epoch - start % per_epoch


class MemoryStore:
    """A tensor of rows [n d] read in the way of a Store; with `targets` [n o], pairs of rows."""

    def __init__(
        self, acts: Float[Tensor, "n d"], targets: Float[Tensor, "n o"] | None = None
    ) -> None:
        self.all, self.targets = acts, targets
        self.rows, self.width = acts.shape
        self.width_out = None if targets is None else targets.shape[1]

    def batches(
        self, size: int, *, seed: int = 0, start: int = 0, part: Part = (0, 1)
    ) -> Iterator[Batch]:
        for i in shuffled(self.rows, size, seed=seed, start=start, part=part):
            yield self.all[i] if self.targets is None else (self.all[i], self.targets[i])

    def sample(self, n: int, *, seed: int = 0) -> Batch:
        return next(self.batches(n, seed=seed))

    def locate(self, size: int, seed: int, batch: int, row: int) -> str:
        """Where a row of a batch came from."""
        return f"row {int(next(shuffled(self.rows, size, seed=seed, start=batch))[row])}"


class Paired:
    """Rows of one source with the rows of another, of the same images and tokens, as targets."""

    def __init__(self, inputs: Source, outputs: Source) -> None:
        if inputs.rows != outputs.rows:
            raise DataError(f"{inputs.rows} rows cannot be paired with {outputs.rows} targets")
        self.inputs, self.outputs = inputs, outputs
        self.rows, self.width, self.width_out = inputs.rows, inputs.width, outputs.width

    def batches(
        self, size: int, *, seed: int = 0, start: int = 0, part: Part = (0, 1)
    ) -> Iterator[Batch]:
        one = self.inputs.batches(size, seed=seed, start=start, part=part)
        other = self.outputs.batches(size, seed=seed, start=start, part=part)
        return ((x, y) for x, y in zip(one, other, strict=False))  # type: ignore[misc]

    def sample(self, n: int, *, seed: int = 0) -> Batch:
        return next(self.batches(n, seed=seed))
