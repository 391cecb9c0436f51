"""ReLU with a penalty on the codes: L1, L_p, and p that falls during training."""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vision_sae.families.base import Family
from vision_sae.sparse import select
from vision_sae.sparse.codes import Support
from vision_sae.sparse.select import Product

if TYPE_CHECKING:
    from vision_sae.losses import Pass
    from vision_sae.sae import SAE


class Rectified(Family):
    """What families share in which every positive pre-activation may be a code."""

    coefficient: float = Field(5.0, ge=0)  # of the penalty
    spreads: ClassVar[bool] = True
    loss: ClassVar[str] = "mse"
    dead: ClassVar[str] = "resample"
    start_norm: ClassVar[float] = 0.1  # Anthropic, April 2024; from 1 it finds far fewer

    def entries(self, sae: "SAE", product: Product, k: int | None) -> tuple[Support, Tensor]:
        return select.above(product, product.bias.new_zeros(()))

    def density(self, sae: "SAE", z: Tensor) -> float:
        return float((z > 0).float().mean())


class ReLU(Rectified):
    """f = relu(z), loss mean sum|x - x_hat|^2 + coefficient * mean sum (f_i n_i)^p.

    n_i is the norm of atom i: 1 with unit atoms ("Towards Monosemanticity", 2023), and the free
    form of Anthropic's April 2024 update with `SAEConfig(atoms="free")`. The coefficient is in
    units of inputs of mean norm sqrt(d).

    In those units b_enc is slow beside weights that grow from a small start, so it has `bias_rate`
    times their learning rate. Free atoms in worlds 1000 and 1001 of benchmarks/synthetic.py (512
    features): MCC .79, .85, .87, .87, .87, .87 and FVU .49, .45, .44, .44, .44, .44 at rates of .5,
    1, 2.9, 4, 8, 16. Unit atoms on activations of emoji-clip: FVU .41 at 1, .37 at 4 and 13.9
    (L0 15.9), with more dead latents. Gated SAEs lose by it (MCC .91 at 1, .89 at 8).
    """

    kind: Literal["relu"] = "relu"
    p: float = Field(1.0, gt=0, le=1)
    bias_rate: ClassVar[float] = 4.0

    def penalty(self, p: "Pass") -> Tensor | None:
        return self.coefficient * power(p, self.p)


def power(p: "Pass", exponent: float, eps: float = 1e-3) -> Tensor:
    """The mean over rows of sum (f_i n_i)^p; `eps` keeps the gradient at 0 finite."""
    values = p.weighted(p.codes)
    if exponent != 1:
        values = ((values + eps) ** exponent - eps**exponent) * (values > 0)
    return values.sum() / p.rows


class PAnneal(Rectified):
    """L_p with a p that falls from 1 in equal steps (Karvonen et al. 2024, arXiv 2408.00113).

    At each step of p the coefficient is rescaled by the ratio of the penalties before and after,
    over the last ten training steps, so that the size of the penalty is continuous.
    """

    kind: Literal["panneal"] = "panneal"
    p_end: float = Field(0.2, gt=0, le=1)
    updates: int = Field(10, ge=1)
    anneal_from: float = Field(0.3, ge=0, lt=1)  # share of the training

    def p_at(self, update: int) -> float:
        """p after this many updates."""
        return 1 + (self.p_end - 1) * min(update, self.updates) / self.updates

    def updates_at(self, progress: float) -> int:
        if progress < self.anneal_from:
            return 0
        share = (progress - self.anneal_from) / (1 - self.anneal_from)
        return min(self.updates, 1 + int(share * self.updates))

    def training_state(self) -> dict[str, Tensor]:
        """Penalties (now, at the next p) of the last ten steps, the factor, the updates done."""
        queue = torch.full((10, 2), torch.nan)
        return {"queue": queue, "factor": torch.tensor(1.0), "updates": torch.tensor(0)}

    def penalty(self, p: "Pass") -> Tensor | None:
        due, queue, factor = self.updates_at(p.progress), p.state["queue"], p.state["factor"]
        if due > int(p.state["updates"]):
            now, then = queue.nanmean(0)
            factor.mul_((now / then).nan_to_num(1.0))
            queue.fill_(torch.nan)
            p.state["updates"].fill_(due)
        value = power(p, self.p_at(due))
        both = torch.stack([value.detach(), power(p, self.p_at(due + 1)).detach()])
        queue[p.step % len(queue)] = p.group.sum(both)
        return self.coefficient * factor * value
