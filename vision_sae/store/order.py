"""The order in which rows are read: a permutation per epoch, a function of (seed, batch number).

The permutation is computed and not stored: a keyed Feistel network says which row stands at a
position, so that an order of a billion rows takes no memory and any batch of it is found at once.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.source import Batch, Source

Part = tuple[int, int]  # (rank, size): this process among those that share each batch

ROUNDS = 8  # with 6, pairs of a handful of rows are measurably uneven
LOW32, LOW64 = 2**32 - 1, 2**64 - 1


def shuffled(
    rows: int, size: int, *, seed: int, start: int, part: Part = (0, 1)
) -> Iterator[Int[Tensor, " n"]]:
    """Endless batches of row numbers from batch number `start` on, or a part of each.

    The last rows of an epoch that do not fill a batch are left out of that epoch. Raises DataError
    when there are no rows, or none in a batch.
    """
    if rows < 1 or size < 1:
        raise DataError(f"no batches of {size} rows can be made of {rows} rows")
    rank, parts = part
    size = min(size, rows)
    while True:
        epoch, i = divmod(start, rows // size)
        positions = torch.arange(i * size, (i + 1) * size)[rank::parts]
        yield permuted(positions, rows, seed=seed, epoch=epoch)
        start += 1


def permuted(
    positions: Int[Tensor, " n"], rows: int, *, seed: int, epoch: int
) -> Int[Tensor, " n"]:
    """The rows at these positions of a permutation of range(rows) keyed by (seed, epoch).

    A generalised Feistel network on pairs (l, r) in Z_a x Z_b, a * b >= rows; what falls outside
    goes through again (Black & Rogaway 2002, "Ciphers with arbitrary finite domains", methods 2
    and 3). a and b are near the root of rows: fewer than a of the a * b fall outside, where
    the next power of 4 could be four times too large. For rows up to 2**62.
    """
    a = math.isqrt(rows - 1) + 1
    b = -(-rows // a)
    keys = _keys(seed, epoch)
    found = _network(positions, a, b, keys)
    while len(outside := (found >= rows).nonzero()[:, 0]):
        found[outside] = _network(found[outside], a, b, keys)
    return found


def _network(x: Int[Tensor, " n"], a: int, b: int, keys: list[int]) -> Int[Tensor, " n"]:
    """A permutation of range(a * b)."""
    left, right = x // b, x % b
    for key_left, key_right in zip(keys[::2], keys[1::2], strict=True):
        left = (left + _hash(right ^ key_left)) % a
        right = (right + _hash(left ^ key_right)) % b
    return left * b + right


def _hash(x: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """32 bits to 32 bits: murmur3's finaliser with Wellons's constants ("lowbias32").

    The second constant is 0x846CA68B - 2**32: the low bits of the product are the same, and below
    2**31 in size no factor can make it overflow 64 bits.
    """
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D & LOW32
    x = x ^ (x >> 15)
    x = x * -0x7B935975 & LOW32
    return x ^ (x >> 16)


def _keys(seed: int, epoch: int) -> list[int]:
    """32 bits for each round."""
    state = _splitmix(_splitmix(seed) + epoch)
    return [_splitmix(state + i) >> 32 for i in range(ROUNDS)]


def _splitmix(x: int) -> int:
    """A step of splitmix64 (Steele, Lea & Flood 2014): 64 bits that depend on all bits of x."""
    x = (x + 0x9E3779B97F4A7C15) & LOW64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & LOW64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & LOW64
    return x ^ (x >> 31)


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

    def locate(self, size: int, seed: int, batch: int, row: int, parts: int = 1) -> str:
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

    def locate(self, size: int, seed: int, batch: int, row: int, parts: int = 1) -> str:
        """Where a row of a batch came from, among the inputs."""
        locate = getattr(self.inputs, "locate", None)
        return str(locate(size, seed, batch, row, parts)) if locate else f"row {row} of the batch"

    def sample(self, n: int, *, seed: int = 0) -> Batch:
        return next(self.batches(n, seed=seed))
