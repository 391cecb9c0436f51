"""How a classifier's output moves as a concept of its input is turned up or down.

Shape key: n images, c classes, d input width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, DataError, require
from vision_sae.measures.latents import scan
from vision_sae.naming import Name
from vision_sae.recipes.bias.classes import Classes, classes_of
from vision_sae.recipes.bias.concept import Concept, concept_of, controls
from vision_sae.recipes.bias.edit import turned
from vision_sae.sae import SAE
from vision_sae.store import Store

LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0)  # times the typical value
FOLDS = 5
CONTROLS = 50


@dataclass(frozen=True)
class Effect:
    """One class: its mean probability over all images with the concept down and up.

    `p`: Wilcoxon signed-rank test of the paired probabilities; `p_holm` corrected over classes
    (Holm 1979). `control_low` and `control_high`: the 5th and 95th percentile of the change under
    random latents; `control_p`: the share of them (itself counted) that change it as much.
    `curve`: the mean probability at each of `Bias.levels`.
    """

    name: str
    images: int
    down: float
    up: float
    p: float
    p_holm: float
    control_low: float
    control_high: float
    control_p: float
    curve: tuple[float, ...]

    @property
    def change(self) -> float:
        return self.up - self.down

    @property
    def moved(self) -> bool:
        """By both tests at .05: it is no chance, and no random latent's doing."""
        return self.p_holm < 0.05 and self.control_p < 0.05


@dataclass(frozen=True)
class Bias:
    """What turning a concept does to a classifier.

    `accuracy` of the classifier on images it was not fitted on, `majority` that of always naming
    the largest class. `distance`: the mean total variation distance between the outputs down and
    up, `control_distance` its mean over random latents, `distance_p` the share of those (itself
    counted) that reach it. `flipped`: the share of images whose predicted class differs.
    """

    concept: Concept
    label: str
    images: int
    left_out: dict[str, int]
    accuracy: float
    majority: float
    distance: float
    control_distance: float
    distance_p: float
    flipped: float
    controls: int
    levels: tuple[float, ...]
    effects: list[Effect]


def bias(
    sae: SAE,
    store: Store,
    *,
    label: str,
    concept: str,
    where: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    names: Mapping[int, Name] | None = None,
    top: int = 1,
    least: int = 10,
    random: int = CONTROLS,
    seed: int = 0,
    classifier: Any = None,
    tell: Callable[[int], None] = lambda images: None,
) -> Bias:
    """Fit a classifier of `label` on a store's vectors and turn `concept` down (0) and up.

    Up is its typical value. Each image is judged by a classifier fitted on the other folds:
    `classifier`, any scikit-learn estimator with predict_proba, by default a logistic regression on
    standardised vectors. For `concept` and `top` see `concept_of`, for `where`, `ignore` and
    `least` `classes_of`. `random` latents of like frequency and strength are turned too.
    Source: MSAE (Zaigrajew et al. 2025, arXiv 2502.20578, bias analysis); the controls are ours.
    The test takes images as independent. Raises DataError for several tokens per image or too few
    images, ConfigError, UnknownName, MismatchError.
    """
    if (tokens := store.index.tokens_per_image) != 1:
        raise DataError(
            f"a classifier reads one vector per image; this store has {tokens}: extract with "
            "--tokens cls or pooled"
        )
    if random < 1 or least < FOLDS:
        raise ConfigError(
            f"at least 1 random latent and {FOLDS} images per class (one per fold) are needed; got "
            f"{random} and {least}"
        )
    classes = classes_of(store.about, label, where=where, ignore=ignore, least=least)
    found = scan(sae, store, tell=tell)
    chosen = concept_of(concept, found, store.about, names, top=top)
    x = torch.cat([acts[:, 0] for acts in store.in_order(1024)])[classes.images].float()
    judge = _Judge(x, classes, classifier, seed)
    judged = [judge(turned(sae, x, _times(chosen.values, level))) for level in LEVELS]
    others = [
        (judge(turned(sae, x, _times(own, 0))), judge(turned(sae, x, own)))
        for own in controls(chosen, sae, found, random, seed)
    ]
    return _told(chosen, label, classes, judge(x), judged, others)


def _times(values: Mapping[int, float], level: float) -> dict[int, float]:
    return {latent: level * value for latent, value in values.items()}


class _Judge:
    """Class probabilities of rows [n d], each by the classifier that did not see its image."""

    def __init__(
        self, x: Float[Tensor, "n d"], classes: Classes, classifier: Any, seed: int
    ) -> None:
        selection = require("sklearn.model_selection", "report")
        classifier = _logistic() if classifier is None else classifier
        if not hasattr(classifier, "predict_proba"):
            raise ConfigError(f"a classifier needs predict_proba; {classifier!r} has none")
        y = np.array(classes.y)
        parts = selection.StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        clone = require("sklearn.base", "report").clone
        self.fitted = [
            (test, clone(classifier).fit(x[train].numpy(), y[train]))
            for train, test in parts.split(x, y)
        ]

    def __call__(self, x: Float[Tensor, "n d"]) -> Any:
        judged = [(test, model.predict_proba(x[test].numpy())) for test, model in self.fitted]
        found = np.empty((len(x), judged[0][1].shape[1]))
        for test, odds in judged:
            found[test] = odds
        return found


def _logistic() -> Any:
    linear = require("sklearn.linear_model", "report")
    scaler = require("sklearn.preprocessing", "report").StandardScaler()
    return require("sklearn.pipeline", "report").make_pipeline(
        scaler, linear.LogisticRegression(max_iter=2000)
    )


def _told(
    concept: Concept,
    label: str,
    classes: Classes,
    usual: Any,
    judged: Sequence[Any],
    others: Sequence[tuple[Any, Any]],
) -> Bias:
    down, up = judged[LEVELS.index(0.0)], judged[LEVELS.index(1.0)]
    y, names = np.array(classes.y), classes.names
    random = np.array([(b - a).mean(0) for a, b in others])  # [controls c]
    distances = np.array([_distance(a, b) for a, b in others])
    low, high = np.percentile(random, (5, 95), axis=0)
    ps = [_wilcoxon(up[:, i] - down[:, i]) for i in range(len(names))]
    effects = [
        Effect(
            name, int((y == name).sum()), float(down[:, i].mean()), float(up[:, i].mean()),
            ps[i], corrected, float(low[i]), float(high[i]),
            _share(np.abs(random[:, i]), abs(float((up - down)[:, i].mean()))),
            tuple(float(one[:, i].mean()) for one in judged),
        )
        for i, (name, corrected) in enumerate(zip(names, holm(ps), strict=True))
    ]  # fmt: skip
    distance = _distance(down, up)
    return Bias(
        concept, label, len(y), classes.left_out,
        accuracy=float((np.array(names)[usual.argmax(1)] == y).mean()),
        majority=max(e.images for e in effects) / len(y),
        distance=distance,
        control_distance=float(distances.mean()),
        distance_p=_share(distances, distance),
        flipped=float((down.argmax(1) != up.argmax(1)).mean()),
        controls=len(others),
        levels=LEVELS,
        effects=sorted(effects, key=lambda e: -e.change),
    )  # fmt: skip


def _distance(a: Any, b: Any) -> float:
    return float(np.abs(a - b).sum(1).mean() / 2)


def _share(random: Any, value: float) -> float:
    return float((1 + (random >= value).sum()) / (1 + len(random)))


def _wilcoxon(change: Any) -> float:
    """Two-sided p; 1 where nothing changed."""
    change = change[change != 0]
    if not len(change):
        return 1.0
    return float(require("scipy.stats", "report").wilcoxon(change).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the p of rank i of m times m - i, ascending, up to 1."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, ps[i] * (len(ps) - rank)))
        corrected[i] = largest
    return corrected
