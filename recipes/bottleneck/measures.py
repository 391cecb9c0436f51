"""How good predictions are, and how honest their probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vision_sae.recipes.bottleneck.head import probabilities
from vision_sae.recipes.bottleneck.solver import Array

BINS = 15


def score(p: Array, Y: Array, *, several: bool) -> float:
    """Accuracy; of several labels the mean over classes of F1 at a probability of one half."""
    if not several:
        return float((p.argmax(1) == Y.argmax(1)).mean())
    said, true = p >= 0.5, Y > 0
    both = (said & true).sum(0)
    return float((2 * both / np.maximum(said.sum(0) + true.sum(0), 1)).mean())


def score_error(p: Array, Y: Array, *, several: bool) -> float:
    """The standard error of a score over images; of several labels, of the mean share right."""
    right = (p.argmax(1) == Y.argmax(1)) if not several else ((p >= 0.5) == (Y > 0)).mean(1)
    return float(right.std() / max(1, len(right)) ** 0.5)


def log_loss(p: Array, Y: Array, *, several: bool) -> float:
    p = np.clip(p, 1e-12, 1 - 1e-12 if several else 1)
    found = Y * np.log(p) + ((1 - Y) * np.log(1 - p) if several else 0)
    return float(-found.sum(1).mean())


def ece(p: Array, Y: Array, *, several: bool, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): mean over bins of confidence, weighted by their
    images, of |accuracy - confidence|. Of several labels over all (image, class) pairs."""
    if several:
        confidence, right = p.ravel(), Y.ravel()
    else:
        confidence, right = p.max(1), (p.argmax(1) == Y.argmax(1)).astype(float)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / max(1, len(confidence)))


def best_temperature(z: Array, Y: Array, *, several: bool) -> float:
    """What logits are divided by so that the log loss of these images is smallest."""
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        return log_loss(probabilities(z / np.exp(log_t), several=several), Y, several=several)

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def by_group(right: Any, groups: Sequence[Any]) -> dict[str, float]:
    """Accuracy of each group of images, by its name."""
    names = np.array([str(group) for group in groups])
    return {name: float(right[names == name].mean()) for name in sorted(set(names.tolist()))}
