"""The classes of known factors as a linear reader of x sees them: what edits are judged by."""

import math
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.measures.labelled import logistic
from vision_sae.measures.labelled.task import Task

SMALL = 1e-3  # a denominator below this gives no score


@dataclass(frozen=True)
class Readout:
    """A probe per value, fitted on the train images; a factor's class is that of the largest."""

    probe: logistic.Probe
    task: Task

    def classes(self, x: Float[Tensor, "m d"], factor: str) -> Int[Tensor, " m"]:
        """The class of each row, numbered as `task.classes(factor)`."""
        return self.probe(x)[:, self.task.columns(factor)].argmax(1)

    @property
    def factors(self) -> list[str]:
        """Those with two values or more, one per image."""
        found = []
        for factor in self.task.factors:
            members = self.task.members[:, self.task.columns(factor)]
            if members.shape[1] > 1 and not bool((members.sum(1) > 1).any()):
                found.append(factor)
        return found

    def accuracy(self, x: Float[Tensor, "n d"]) -> float:
        """Mean over factors of the share of test images (that have it) which are read rightly."""
        shares = []
        for factor in self.factors:
            truth = self.task.classes(factor)
            here = self.task.test & (truth >= 0)
            right = self.classes(x[here], factor) == truth[here]
            shares.append(float(right.double().mean()))
        return sum(shares) / len(shares) if shares else math.nan


def readout(x: Float[Tensor, "n d"], task: Task) -> Readout:
    return Readout(logistic.fit(x, task.members, task.train), task)


@dataclass(frozen=True)
class Approximation:
    """What the reconstruction keeps of what can be read off x, and what the error keeps.

    accuracy: on x, on x_hat, and on the mean of the train images alone. sufficiency:
    (x_hat - mean) / (x - mean). necessity: 1 less the same with the error put in place of x_hat.
    """

    x: float
    x_hat: float
    mean: float
    sufficiency: float
    necessity: float
    reason: str = ""


def approximation(
    x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"], reader: Readout
) -> Approximation:
    """First axis of Makelov, Lange & Nanda 2024 (arXiv 2405.08366), with probes as the task.

    The reconstruction stands in for x (sufficiency), then the error around the mean does
    (necessity). NaN with a reason where x is read no better than the mean.
    """
    middle = x[reader.task.train].mean(0)
    constant, error = middle.expand_as(x), middle + x - x_hat
    full, kept, floor, left = (reader.accuracy(rows) for rows in (x, x_hat, constant, error))
    if not full - floor > SMALL:
        nan, why = math.nan, "probes on x are no better than the mean"
        return Approximation(full, kept, floor, nan, nan, why)
    sufficiency, rest = ((part - floor) / (full - floor) for part in (kept, left))
    return Approximation(full, kept, floor, sufficiency, 1 - rest)
