"""Optimizers, by name."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vision_sae.parallel import ALONE, Group
from vision_sae.sae import SAE
from vision_sae.train.config import TrainConfig


def optimizer_of(config: TrainConfig, sae: SAE) -> torch.optim.Optimizer:
    """Fused Adam, or the lean one for dictionaries of which a step touches few rows.

    Each parameter is a group of its own, whose `rate` multiplies the learning rate.
    """
    rates = sae.config.sparsity.rates()
    if config.bias_rate:
        rates["b_enc"] = config.bias_rate
    groups: list[dict[str, Any]] = [
        {"params": [parameter], "rate": rates.get(name, 1.0)}
        for name, parameter in sae.named_parameters()
    ]
    if config.optimizer == "rows":
        return RowAdam(groups, 0.0, config.betas, config.eps)
    return torch.optim.Adam(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["rate"]


class RowAdam(torch.optim.Optimizer):
    """Adam with one second moment per row, which moves only rows that have a gradient.

    Row-sparse gradients stay so: nothing of the weights' size is made but the first moment. The
    second moment is the mean of squares over the row (as in FBGEMM's partial row-wise Adam); rows
    without gradient keep their moments (as in torch's SparseAdam).
    """

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["row_sq"] = parameter.new_zeros(parameter.shape[:1])
        state["step"] += 1
        rows, grad = rows_of(parameter.grad)
        (one, two), t = group["betas"], float(state["step"])
        mean = state["exp_avg"][rows].lerp_(grad, 1 - one)
        squares = grad.square().view(len(grad), parameter[0].numel()).mean(1)
        square = state["row_sq"][rows].lerp_(squares, 1 - two)
        state["exp_avg"][rows], state["row_sq"][rows] = mean, square
        size = (square / (1 - two**t)).sqrt_().add_(group["eps"])
        change = mean.div_(size.view(-1, *[1] * (grad.ndim - 1)))
        parameter.index_add_(0, rows, change, alpha=-group["lr"] / (1 - one**t))


def rows_of(grad: Tensor | None) -> tuple[Int[Tensor, " r"], Float[Tensor, "r *rest"]]:
    """The rows that a gradient covers and their values, of a dense or row-sparse one."""
    assert grad is not None
    if not grad.is_sparse:
        return torch.arange(len(grad), device=grad.device), grad
    grad = grad.coalesce()
    return grad.indices()[0], grad.values()


@torch.no_grad()
def clip_gradients(sae: SAE, most: float, group: Group = ALONE, cut: Collection[str] = ()) -> None:
    """Scale all gradients down so that their norm together is at most `most`.

    Of the parameters that are `cut`, each process holds a part.
    """
    named = [(name, p.grad) for name, p in sae.named_parameters() if p.grad is not None]
    squares = [(name, rows_of(grad)[1].norm().square()) for name, grad in named]
    zero = sae.b_dec.new_zeros(())
    mine = sum((square for name, square in squares if name in cut), zero)
    norm = (group.latents.sum(mine) + sum(s for name, s in squares if name not in cut)).sqrt()
    factor = (most / norm.clamp(min=1e-12)).clamp(max=1)
    for parameter in sae.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
