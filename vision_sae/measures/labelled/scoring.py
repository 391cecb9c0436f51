"""From scores of every image for every value to rates: thresholds of train, told of test."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vision_sae.measures.factors import auroc
from vision_sae.measures.labelled.task import Task, mean_of


@dataclass(frozen=True)
class Rates:
    """Of each value, on the test images: at the threshold of largest F1 on train; `auroc` at all.

    balanced: the mean of the true positive and the true negative rate.
    """

    f1: Float[Tensor, " v"]
    balanced: Float[Tensor, " v"]
    auroc: Float[Tensor, " v"]
    predicted: Bool[Tensor, "m v"]  # of the test images

    def means(self) -> dict[str, float]:
        return {name: mean_of(getattr(self, name)) for name in ("f1", "balanced", "auroc")}


def rates(scores: Float[Tensor, "n v"], task: Task) -> Rates:
    thresholds = best_thresholds(scores[task.train], task.members[task.train])
    here, truth = scores[task.test], task.members[task.test]
    predicted = here >= thresholds
    areas = [auroc(here[:, i], truth[:, i]) for i in range(truth.shape[1])]
    return Rates(f1(predicted, truth), balanced(predicted, truth), torch.tensor(areas), predicted)


def best_thresholds(
    scores: Float[Tensor, "n v"], truth: Bool[Tensor, "n v"]
) -> Float[Tensor, " v"]:
    """The score from which on predicting a value has the largest F1: 2 hits / (fired + true)."""
    ordered, order = scores.sort(dim=0, descending=True)
    hits = truth.gather(0, order).cumsum(0)
    fired = torch.arange(1, len(scores) + 1)[:, None]
    found = 2 * hits / (fired + truth.sum(0))
    tied = torch.zeros_like(truth)
    tied[:-1] = ordered[:-1] == ordered[1:]  # a threshold cannot part equal scores
    return ordered.gather(0, found.masked_fill(tied, -1).argmax(0)[None])[0]


def f1(predicted: Bool[Tensor, "n v"], truth: Bool[Tensor, "n v"]) -> Float[Tensor, " v"]:
    """2 hits / (predicted + true) of each column; NaN where both are empty."""
    hits = (predicted & truth).sum(0)
    return (2 * hits).float() / (predicted.sum(0) + truth.sum(0))


def balanced(predicted: Bool[Tensor, "n v"], truth: Bool[Tensor, "n v"]) -> Float[Tensor, " v"]:
    """Balanced accuracy of each column; NaN where one class is missing."""
    yes = (predicted & truth).sum(0) / truth.sum(0)
    no = (~predicted & ~truth).sum(0) / (~truth).sum(0)
    return (yes + no) / 2


def f1_of_images(predicted: Bool[Tensor, "n v"], truth: Bool[Tensor, "n v"]) -> float:
    """Mean over images of the F1 of the set of values; images with neither are left out."""
    return mean_of(f1(predicted.T, truth.T))
