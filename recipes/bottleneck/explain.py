"""Why a bottleneck decides as it does: per image, per class, and how many concepts it takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vision_sae.errors import UnknownName
from vision_sae.recipes.bottleneck.head import Head, Share, reaching
from vision_sae.recipes.bottleneck.solver import Array

SHARES = (0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Contribution:
    """What one concept adds to a logit: value = weight x code."""

    concept: int
    name: str | None
    code: float
    weight: float
    value: float


@dataclass(frozen=True)
class Explanation:
    """One image. The logit is intercept + centring + the sum of all contributions, exactly.

    Contributions are of `explained` (by default the predicted class), largest in size first; with
    `against`, of its logit minus that class'. `centring` is what a centred head takes off for the
    mean image, 0 in another. `reach`: how many concepts reach a share of the sum of all absolute
    contributions.
    """

    key: str
    predicted: Any
    probability: float
    explained: Any
    against: Any | None
    logit: float
    intercept: float
    centring: float
    contributions: tuple[Contribution, ...]
    reach: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def explain_rows(
    head: Head,
    X: Any,
    keys: Sequence[str],
    names: dict[int, str],
    *,
    of: Any = None,
    against: Any = None,
) -> list[Explanation]:
    """An explanation of each row of codes X [n s]. Raises UnknownName for a class not there."""
    p = head.probabilities(X)
    best = p.argmax(1)
    classes = best if of is None else np.full(len(p), class_number(head, of))
    other = None if against is None else class_number(head, against)
    terms = _Terms(head, names)
    return [
        terms.explained(X[[i]], keys[i], int(best[i]), float(p[i, best[i]]), int(c), other)
        for i, c in enumerate(classes)
    ]


class _Terms:
    """A head's weights and constant terms, class by class, made dense once."""

    def __init__(self, head: Head, names: dict[int, str]) -> None:
        self.head, self.names, self.centring = head, names, head.centring
        self.weights: dict[int, Array] = {}

    def of(self, c: int) -> tuple[Array, float, float]:
        """Weights [s], intercept and centring of a class."""
        if c not in self.weights:
            self.weights[c] = self.head.W[[c]].toarray()[0]
        return self.weights[c], float(self.head.b[c]), float(self.centring[c])

    def explained(
        self, row: Any, key: str, best: int, p: float, c: int, other: int | None
    ) -> Explanation:
        w, intercept, centring = self.of(c)
        if other is not None:
            w2, intercept2, centring2 = self.of(other)
            w, intercept, centring = w - w2, intercept - intercept2, centring - centring2
        found = sorted(
            (
                Contribution(int(i), self.names.get(int(i)), float(f), float(w[i]), float(w[i] * f))
                for i, f in zip(row.indices, row.data, strict=True)
                if w[i] * f
            ),
            key=lambda one: -abs(one.value),
        )
        values = [one.value for one in found]
        return Explanation(
            key=key,
            predicted=self.head.classes[best],
            probability=p,
            explained=self.head.classes[c],
            against=None if other is None else self.head.classes[other],
            logit=intercept + centring + sum(values),
            intercept=intercept,
            centring=centring,
            contributions=tuple(found),
            reach={f"{share:.0%}": _reach(values, share) for share in SHARES},
        )


def _reach(values: Sequence[float], share: float) -> int:
    from scipy.sparse import csr_array

    return int(reaching(csr_array(np.array([values]) if values else np.zeros((1, 1))), share)[0])


def class_number(head: Head, name: Any) -> int:
    """Raises UnknownName."""
    for i, one in enumerate(head.classes):
        if one == name or str(one) == str(name):
            return i
    raise UnknownName("class", str(name), [str(one) for one in head.classes])


def reach(head: Head, X: Any, of: Share = "absolute") -> dict[str, float]:
    """Mean number of concepts that reach 90, 95 and 99% of the predicted class' logit."""
    contributions = head.contributions(X, head.logits(X).argmax(1))
    return {f"{s:.0%}": float(reaching(contributions, s, of).mean()) for s in SHARES}


@dataclass(frozen=True)
class ClassConcept:
    """A concept of a class: its weight, its mean contribution over the images predicted as that
    class, and on how many of them it is active."""

    concept: int
    name: str | None
    weight: float
    mean: float
    images: int


def class_concepts(
    head: Head, X: Any, names: dict[int, str], *, top: int = 20
) -> dict[Any, list[ClassConcept]]:
    """The concepts that decide for and against each class, by the size of their mean contribution
    over the images predicted as it (DN-CBM's global explanation, both signs)."""
    best = head.logits(X).argmax(1)
    found = {}
    for c, name in enumerate(head.classes):
        rows = X[np.flatnonzero(best == c)]
        n = max(1, rows.shape[0])
        w = head.W[[c]].toarray()[0]
        mean = np.asarray(rows.sum(0)).ravel() / n * w
        active = np.bincount(rows.indices[rows.data != 0], minlength=len(w))
        # where no image is predicted as the class, weights speak alone
        order = np.lexsort((-np.abs(w), -np.abs(mean)))
        found[name] = [
            ClassConcept(int(i), names.get(int(i)), float(w[i]), float(mean[i]), int(active[i]))
            for i in order[:top]
            if w[i]
        ]
    return found
