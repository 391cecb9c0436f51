"""The image gate: a linear detector of a concept on token-mean codes, one for each timestep.

Shape key: n prompts, T timesteps, m latents.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RIDGE = 0.01


class Detector(NamedTuple):
    """The concept is there where codes @ weight[t] + bias[t] is above 0."""

    weight: Float[Tensor, "T m"]
    bias: Float[Tensor, " T"]

    def scores(self, codes: Float[Tensor, "n T m"]) -> Float[Tensor, "n T"]:
        return torch.einsum("ntm,tm->nt", codes, self.weight) + self.bias


def fit(
    codes: Float[Tensor, "n T m"], truth: Bool[Tensor, " n"], *, ridge: float = RIDGE
) -> Detector:
    """Least squares on standardised codes, both classes weighing the same.

    The threshold is half way between what nearly all of either class reach: the 2nd percentile of
    the concept's prompts and the 98th of the others.
    """
    x = codes.double().movedim(1, 0)  # [T n m]
    middle, scale = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-6
    z = (x - middle) / scale
    y = torch.where(truth, 1.0, -1.0).double()
    weight = torch.where(truth, 0.5 / truth.sum(), 0.5 / (~truth).sum()).double()
    centred = z - (weight @ z)[:, None]
    gram = (centred * weight[:, None]).mT @ centred
    eye = torch.eye(z.shape[2], dtype=z.dtype)
    target = (centred * weight[:, None]).mT @ y
    solved = torch.linalg.solve(gram + ridge * eye, target) / scale[:, 0]  # [T m]
    scores = torch.einsum("tnm,tm->nt", x, solved)
    low, high = scores[truth].quantile(0.02, 0), scores[~truth].quantile(0.98, 0)
    return Detector(solved.float(), -((low + high) / 2).float())


def balanced_accuracy(
    detector: Detector, codes: Float[Tensor, "n T m"], truth: Bool[Tensor, " n"]
) -> Float[Tensor, " T"]:
    """The mean of the share found among the concept's prompts and left among the others."""
    found = detector.scores(codes) > 0
    return (found[truth].float().mean(0) + (~found[~truth]).float().mean(0)) / 2
