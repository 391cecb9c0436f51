"""Statistics of rows that training starts from and ends with."""

import torch
from jaxtyping import Float
from torch import Tensor


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
def kmeans(
    x: Float[Tensor, "n d"], centres: int, *, seed: int = 0, steps: int = 20
) -> Float[Tensor, "c d"]:
    """Lloyd's algorithm from rows drawn at random; rows are drawn twice when there are too few."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(max(len(x), centres), generator=generator)[:centres] % len(x)
    points = x[drawn].clone()
    for _ in range(steps):
        nearest = torch.cdist(x, points).argmin(1)
        count = torch.bincount(nearest, minlength=centres)
        sums = torch.zeros_like(points).index_add_(0, nearest, x)
        points = torch.where(count[:, None] > 0, sums / count[:, None].clamp(min=1), points)
    return points
