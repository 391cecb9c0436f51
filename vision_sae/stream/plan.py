"""Which images make which rows of which batch: a function of the seed, for each process."""

from dataclasses import dataclass
from typing import NamedTuple

Part = tuple[int, int]  # (rank, size): this process among those that share each batch


class Share(NamedTuple):
    """Some neighbours among the images in a seeded order."""

    seed: int
    first: int
    images: int


@dataclass(frozen=True)
class Plan:
    """How the images of an epoch become blocks and batches, for one of several processes."""

    images: int
    t: int
    block_images: int
    size: int
    part: Part

    @property
    def mine(self) -> int:
        """The rows of each batch that this process gives."""
        rank, parts = self.part
        return len(range(rank, self.size, parts))

    @property
    def own_images(self) -> int:
        """Of an epoch; those that do not divide among the processes wait for the next."""
        return self.images // self.part[1]

    @property
    def own_block(self) -> int:
        return min(self.own_images, max(1, self.block_images // self.part[1]))

    @property
    def block_rows(self) -> int:
        return self.own_block * self.t

    @property
    def per_epoch(self) -> int:
        """Batches; the last rows that fill none are left out of an epoch."""
        largest = -(-self.size // self.part[1])
        return max(1, self.own_images * self.t // largest)

    @property
    def ahead(self) -> int:
        """Batches to make early: those of about one block."""
        return max(2, self.block_rows // max(1, self.mine))

    def place(self, batch: int) -> tuple[int, int]:
        """The epoch of a batch and its first row there."""
        epoch, number = divmod(batch, self.per_epoch)
        return epoch, number * self.mine

    def shares(self, seed: int, epoch: int) -> list[Share]:
        """The blocks of an epoch: of this process's range of the images."""
        mine, block = self.own_images, self.own_block
        order, first = mixed(seed, epoch, 0), self.part[0] * mine
        return [
            Share(order, first + start, min(block, mine - start)) for start in range(0, mine, block)
        ]


def mixed(*numbers: int) -> int:
    """A seed from several numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return seed
