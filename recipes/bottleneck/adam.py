"""The reference's head: a linear layer without bias, trained by Adam for a fixed number of epochs.

DN-CBM (Rao et al. 2024), as published: cross-entropy + weight mean|W|, batches of 512, 200 epochs,
lr 1e-3. Nothing here is solved to optimality and no weight is exactly zero; it is for comparison.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vision_sae.recipes.bottleneck.head import Head
from vision_sae.recipes.bottleneck.labels import Targets
from vision_sae.recipes.bottleneck.solver import Solution

LESS_THAN = 1e-3  # weights that are smaller are taken for zero, to have a sparse head to explain


def adam_heads(
    X: Any,
    targets: Targets,
    *,
    weights: Sequence[float] = (1.0,),
    lr: float = 1e-3,
    epochs: int = 200,
    batch_size: int = 512,
    less_than: float = LESS_THAN,
    seed: int = 0,
    tell: Callable[[int], None] = lambda solved: None,
) -> Iterator[tuple[Solution, Head]]:
    """A head for each weight of the penalty; its `gap` is not a number, as nothing is proven."""
    from scipy.sparse import csr_array

    for weight in weights:
        W, objective = _trained(X, targets, weight, lr, epochs, batch_size, seed)
        W = np.where(np.abs(W) < less_than, 0, W)
        zero = np.zeros(len(targets.classes))
        solution = Solution(weight, csr_array(W), zero, objective, float("nan"), epochs)
        head = Head(targets.classes, solution.W, zero, np.zeros(X.shape[1]), targets.several)
        yield solution, head
        tell(1)


def _trained(
    X: Any, targets: Targets, weight: float, lr: float, epochs: int, size: int, seed: int
) -> tuple[Any, float]:
    generator = torch.Generator().manual_seed(seed)
    layer = torch.empty(len(targets.classes), X.shape[1])
    torch.nn.init.kaiming_uniform_(layer, a=5**0.5, generator=generator)
    W = torch.nn.Parameter(layer)
    Y = torch.from_numpy(targets.Y).float()
    adam = torch.optim.Adam([W], lr=lr)
    loss = torch.tensor(0.0)
    for _ in range(epochs):
        for rows in torch.randperm(len(Y), generator=generator).split(size):
            x = torch.from_numpy(X[rows.numpy()].toarray()).float()  # one batch only
            loss = _loss(x @ W.T, Y[rows], targets.several) + weight * W.abs().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    return W.detach().double().numpy(), float(loss.detach())


def _loss(z: Tensor, y: Tensor, several: bool) -> Tensor:
    if several:
        return torch.nn.functional.binary_cross_entropy_with_logits(z, y)
    return torch.nn.functional.cross_entropy(z, y)
