"""What several processes of one training share: sums, and who does what.

Two kinds of sharing. "rows": every process holds the whole SAE and sees a part of each batch.
"latents": every process holds a part of the latents and sees every row (see sharded.py).
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from vision_sae.errors import ConfigError

Kind = Literal["rows", "latents"]
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Group:
    """This process among those that train together; alone by default.

    Every method with a result is a meeting: all processes must call it. Alone, none costs anything.
    """

    rank: int = 0
    size: int = 1
    kind: Kind = "rows"
    device: str = "cpu"

    @property
    def rows(self) -> "Group":
        """Those that share the rows of a batch: this group, or this process alone."""
        return self if self.kind == "rows" else ALONE

    @property
    def latents(self) -> "Group":
        """Those that share the latents: this group, or this process alone."""
        return self if self.kind == "latents" else ALONE

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_all(self, tensors: Iterable[Tensor]) -> None:
        """The sum of each, in place, all on their way at once."""
        if self.size > 1:
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def total(self, number: int) -> int:
        """The sum of the processes' numbers."""
        return number if self.size == 1 else int(self.sum(torch.tensor(number)))

    def largest(self, tensor: Tensor) -> Tensor:
        """The maximum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def least(self, number: Tensor | None) -> Tensor | None:
        """The smallest number that any process has, NaN if any is; None when none has one."""
        if self.size == 1:
            return number
        mine = torch.tensor(torch.inf if number is None else float(number), dtype=torch.float64)
        least = torch.stack(self._each(mine)).min()  # of NaN too, other than gloo's minimum
        return None if least.isinf() else least.to(self.device)

    def either(self, *flags: bool) -> list[bool]:
        """Each flag, true when it is so on any process."""
        if self.size == 1:
            return list(flags)
        return [bool(flag) for flag in self.largest(torch.tensor(flags, dtype=torch.uint8))]

    def same(self, tensors: Iterable[Tensor]) -> None:
        """What the first process holds, for all, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def gather(self, numbers: Tensor) -> Tensor:
        """The numbers of all processes, one after the other; each may have another count."""
        if self.size == 1:
            return numbers
        counts = self._each(torch.tensor([len(numbers)]))
        most = int(max(counts))
        padding = numbers.new_zeros(most - len(numbers), *numbers.shape[1:])
        parts = self._each(torch.cat([numbers, padding]))
        return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])

    def _each(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, of one shape."""
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return parts

    def in_order(self, part: Shaped[Tensor, " n"]) -> Shaped[Tensor, " all"]:
        """A number of each row in the order of the batch, of which a process has rows rank,
        rank + size, ...
        """
        if self.size == 1:
            return part
        place = torch.arange(len(part), device=part.device) * self.size + self.rank
        return self.gather(part)[self.gather(place).argsort()]

    def pick(self, part: Float[Tensor, "n d"], rows: Int[Tensor, " r"]) -> Float[Tensor, "r d"]:
        """Rows of the batch, by their numbers in it, wherever they are."""
        if self.size == 1:
            return part[rows]
        picked = part.new_zeros(len(rows), part.shape[1])
        mine = rows % self.size == self.rank
        picked[mine] = part[rows[mine] // self.size]
        return self.sum(picked)

    def joined(self, part: Tensor) -> Tensor:
        """The sum of the processes' parts, where each goes on to compute the same with it.

        Its gradient is therefore that of each part, and is not summed again.
        """
        if self.size == 1:
            return part
        out: Tensor = _Joined.apply(part, self)
        return out

    def part_of(self, number: Tensor) -> Tensor:
        """Of a number that all processes have alike, the part of one; the gradient is whole."""
        return number if self.size == 1 else number + number.detach() * (1 / self.size - 1)

    def best(self, scores: Float[Tensor, "n c"], k: int) -> Bool[Tensor, "n c"]:
        """Which of each row's scores are among the k largest of all processes."""
        mine = scores.shape[1]
        width = int(self.largest(torch.tensor(mine)))
        padded = torch.nn.functional.pad(scores, (0, width - mine), value=-torch.inf)
        everyone = torch.cat(self._each(padded), dim=1)
        chosen = everyone.topk(min(k, everyone.shape[1]), dim=1, sorted=False).indices
        kept = torch.zeros_like(everyone, dtype=torch.bool).scatter_(1, chosen, True)
        return kept[:, self.rank * width : self.rank * width + mine]


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        return group.sum(part.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


ALONE = Group()


@contextmanager
def join(kind: str = "rows", *, timeout: float = 1800) -> Iterator[Group]:
    """The processes that torchrun started, as a group; this process alone without torchrun.

    Numbers on a CPU travel by gloo, those on a GPU (one for each process of a machine) by NCCL.
    `kind`: what they share, "rows" or "latents". `timeout`: seconds after which a process that
    waits for the others gives up. Raises ConfigError.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"processes share {' or '.join(get_args(Kind))}; got {kind!r}")
    share: Kind = "rows" if kind == "rows" else "latents"
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    rank, size, local = _places()
    device = _claim_device(local)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    try:
        yield Group(rank, size, share, device)
    except BaseException:
        if device == "cpu":  # NCCL would wait here for processes that wait for this one
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def refuse(what: str, who_can: str) -> None:
    """Raises ConfigError under torchrun."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(f"{what} runs in one process, not under torchrun; {who_can}")


def _places() -> tuple[int, int, int]:
    """Rank, size, rank on this machine. Raises ConfigError for half an environment."""
    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set: start "
            "with torchrun --nproc-per-node N, or unset WORLD_SIZE"
        )
    rank, size, local = (int(os.environ[name]) for name in TORCHRUN[:3])
    return rank, size, local


def _claim_device(local: int) -> str:
    if not torch.cuda.is_available():
        return "cpu"
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs are here, but process {local + 1} wants one too: "
            "start at most as many processes as there are GPUs"
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"
