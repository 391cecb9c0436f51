"""Statistics of rows that training starts from and ends with."""

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae import sparsity
from vision_sae.sae import SAE


def geometric_median(x: Float[Tensor, "n d"], steps: int = 100) -> Float[Tensor, " d"]:
    """The point of least summed distance, by Weiszfeld's iteration, to a relative move of 1e-6."""
    point = x.mean(0)
    for _ in range(steps):
        weight = 1 / (x - point).norm(dim=1).clamp(min=1e-8)
        moved = (weight[:, None] * x).sum(0) / weight.sum()
        done = bool((moved - point).norm() <= 1e-6 * point.norm().clamp(min=1e-12))
        point = moved
        if done:
            break
    return point


def centre(x: Float[Tensor, "n d"], how: str) -> Float[Tensor, " d"]:
    """The geometric median, the mean, or zero."""
    if how == "median":
        return geometric_median(x)
    return x.mean(0) if how == "mean" else torch.zeros_like(x[0])


@torch.no_grad()
def calibrate(sae: SAE, x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The exact threshold at which a BatchTopK SAE has a mean L0 of k over these rows."""
    k = sae.config.sparsity.k
    kept = sparsity.batch_topk(sae.pre_activations(x), k).values
    return kept[kept > 0].min() * (1 - 1e-6)  # above this, strictly
