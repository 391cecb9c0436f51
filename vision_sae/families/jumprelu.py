"""JumpReLU: a learnt threshold per latent, trained through kernels around the jump.

The derivative of a step is replaced by a kernel K of unit integral and width eps (Rajamanoharan
et al. 2024, arXiv 2407.14435, section 4): for f = z H(z - theta),

    df/dz = H(z - theta),  df/dtheta = -(theta / eps) K((z - theta) / eps)
    dH/dz = 0,             dH/dtheta = -(1 / eps) K((z - theta) / eps)
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vision_sae.families.base import At, Family
from vision_sae.sparse import select
from vision_sae.sparse.codes import Support
from vision_sae.sparse.select import Product

if TYPE_CHECKING:
    from vision_sae.losses import Pass
    from vision_sae.sae import SAE

Kernel = Callable[[Tensor], Tensor]
SAMPLE, TILE = 2**13, 2**10  # rows that first thresholds are found on; latents at a time

# name -> (half of the support, K); each integrates to 1
KERNELS: dict[str, tuple[float, Kernel]] = {
    "rectangle": (0.5, lambda u: (u.abs() < 0.5).to(u.dtype)),
    "triangle": (1.0, lambda u: (1 - u.abs()).clamp(min=0)),
    "epanechnikov": (1.0, lambda u: 0.75 * (1 - u.square()).clamp(min=0)),
    "quartic": (1.0, lambda u: 15 / 16 * (1 - u.square()).clamp(min=0).square()),
    "cosine": (1.0, lambda u: math.pi / 4 * torch.cos(math.pi / 2 * u.clamp(-1, 1))),
    "gaussian": (4.0, lambda u: torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi)),
}


KernelName = Literal["rectangle", "triangle", "epanechnikov", "quartic", "cosine", "gaussian"]


class JumpReLU(Family):
    """f = z where z exceeds the latent's threshold, else 0, with one of three sparsity losses.

    step: coefficient * L0 (arXiv 2407.14435, eq. 9). tanh: coefficient * sum tanh(c f n)
    (Anthropic, January 2025: coefficient 5, start 0.1, bandwidth 2, and `to_input`, which lets the
    kernel's gradient reach z too). target: coefficient * d * (L0 / target - 1)^2, as d is about the
    squared error of the mean; each latent starts active on target / s of the rows (in the others at
    `start`). Widths and coefficients are in units of inputs of mean norm sqrt(d). Thresholds
    are learnt as they are and atoms are free by default: with their logarithms or unit atoms far
    fewer features are found. `threshold_rate` is their learning rate over that of the weights, 4 in
    the target mode and 1 in the others; with 16 short runs come nearer to the target.
    """

    kind: Literal["jumprelu"] = "jumprelu"
    mode: Literal["step", "tanh", "target"] = "step"  # which sparsity loss
    coefficient: float = Field(1.5, ge=0)  # of the sparsity loss
    target: float = Field(20.0, gt=0)  # L0, of the target mode
    c: float = Field(4.0, gt=0)  # of the tanh mode
    start: float = Field(0.03, gt=0)  # first threshold
    threshold_rate: float | None = Field(None, gt=0)
    bandwidth: float = Field(0.14, gt=0)  # eps
    kernel: KernelName = "rectangle"  # the shape of the jump's derivative
    to_input: bool = False
    spreads: ClassVar[bool] = True
    loss: ClassVar[str] = "mse"
    dead: ClassVar[str] = "preact"
    start_norm: ClassVar[float] = 0.1

    def attach(self, sae: "SAE") -> None:
        sae.thresholds = nn.Parameter(torch.full((sae.config.s,), self.start))

    def begin(self, sae: "SAE", x: Float[Tensor, "n d"]) -> None:
        if self.mode != "target":
            return
        rows, s = sae.read(x[:SAMPLE]), sae.group.latents.total(sae.config.s)
        few = min(len(rows), max(1, round(len(rows) * self.target / s)))
        parts = zip(sae.W_enc.split(TILE), sae.b_enc.split(TILE), strict=True)
        least = [F.linear(rows, W, b).topk(few, 0).values[-1] for W, b in parts]
        sae.thresholds.copy_(torch.cat(least).clamp(min=0))

    def rates(self) -> dict[str, float]:
        usual = 4.0 if self.mode == "target" else 1.0
        return {**super().rates(), "thresholds": self.threshold_rate or usual}

    def floor(self, sae: "SAE") -> Float[Tensor, " s"]:
        """Thresholds, at least 0; the gradient passes where they are held there."""
        free = sae.thresholds
        return free + (free.clamp(min=0) - free).detach()

    def rescale(self, sae: "SAE", scale: float, out: float) -> None:
        sae.thresholds.div_(scale)

    def fold_norms(self, sae: "SAE", norms: Tensor) -> None:
        sae.thresholds.mul_(norms)

    def margin(self) -> float:
        """How far below the threshold the kernel reaches."""
        return KERNELS[self.kernel][0] * self.bandwidth

    def entries(self, sae: "SAE", product: Product, k: int | None) -> tuple[Support, Tensor]:
        least = self.floor(sae)
        if sae.training:
            least = least - self.margin()
        return select.above(product, least)

    def density(self, sae: "SAE", z: Tensor) -> float:
        return float((z > self.floor(sae) - self.margin()).float().mean())

    def activate(self, sae: "SAE", z: Tensor, at: At) -> Tensor:
        theta = at(self.floor(sae))
        out: Tensor = _Jump.apply(z, theta, self.bandwidth, self.kernel, self.to_input)
        return out

    def penalty(self, p: "Pass") -> Tensor | None:
        if self.mode == "tanh":
            return self.coefficient * torch.tanh(self.c * p.weighted(p.codes)).sum() / p.rows
        theta = p.codes.per_entry(self.floor(p.sae))
        on: Tensor = _Step.apply(p.z, theta, self.bandwidth, self.kernel)
        l0 = on.sum() / p.rows
        if self.mode == "step":
            return self.coefficient * l0
        share = p.share()  # a piece stands for the batch
        miss = (p.whole_batch(l0) / share / self.target - 1).square()
        return p.group.part_of(self.coefficient * p.sae.config.width_out * share * miss)


def _kernel(z: Tensor, theta: Tensor, eps: float, kernel: str) -> Tensor:
    """(1 / eps) K((z - theta) / eps): the derivative of the smoothed step."""
    half, k = KERNELS[kernel]
    u = (z - theta) / eps
    return torch.where(u.abs() < half, k(u), 0) / eps


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, theta: Tensor, eps: float, kernel: str, to_input: bool
    ) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.settings = (eps, kernel, to_input)
        return z * (z > theta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, theta = ctx.saved_tensors
        eps, kernel, to_input = ctx.settings
        jump = theta * _kernel(z, theta, eps, kernel)
        to_z = (z > theta).to(z.dtype) + (jump if to_input else 0)
        return grad * to_z, (-grad * jump).sum_to_size(theta.shape), None, None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, eps: float, kernel: str) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.settings = (eps, kernel)
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, theta = ctx.saved_tensors
        to_theta = -grad * _kernel(z, theta, *ctx.settings)
        return None, to_theta.sum_to_size(theta.shape), None, None
