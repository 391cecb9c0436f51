"""What several processes of one training share: sums, and who does what."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """This process among those that train together; alone by default."""

    rank: int = 0
    size: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The maximum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def least(self, number: Tensor | None) -> Tensor | None:
        """The smallest number that any process has; None when none has one."""
        if self.size == 1:
            return number
        mine = torch.tensor(torch.inf) if number is None else number.float()
        dist.all_reduce(mine, dist.ReduceOp.MIN)
        return None if mine.isinf() else mine

    def gather(self, numbers: Tensor) -> Tensor:
        """The numbers of all processes, one after the other; each may have another count."""
        if self.size == 1:
            return numbers
        count = torch.tensor([len(numbers)], device=numbers.device)
        counts = [torch.zeros_like(count) for _ in range(self.size)]
        dist.all_gather(counts, count)
        most = int(max(counts))
        padded = torch.cat([numbers, numbers.new_zeros(most - len(numbers))])
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])


ALONE = Group()
