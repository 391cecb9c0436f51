"""The linear probe: multinomial logistic regression with an l2 penalty, chosen on validation."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_sae.errors import DataError, require

Array = NDArray[np.float64]
CS = tuple(10.0**power for power in range(-4, 4))


@dataclass(frozen=True)
class Probe:
    """Weights on standardised dimensions, the C that was chosen, and validation accuracy by C."""

    model: Any
    mean: Array
    deviation: Array
    C: float
    validation: dict[float, float]

    @property
    def classes(self) -> list[Any]:
        return list(self.model.classes_)

    def probabilities(self, x: Array) -> Array:
        """[n c] of rows [n d]."""
        found: Array = self.model.predict_proba((x - self.mean) / self.deviation)
        return found

    def predict(self, x: Array) -> list[Any]:
        return [self.classes[i] for i in self.probabilities(x).argmax(1)]


def fit_probe(
    x: Array,
    y: Sequence[Any],
    validation: tuple[Array, Sequence[Any]],
    cs: Sequence[float] = CS,
) -> Probe:
    """Fit at each C and keep the one of best validation accuracy, of equals the smallest.

    Dimensions are standardised by the training rows; C is scikit-learn's. Raises DataError for rows
    and labels that do not match.
    """
    linear = require("sklearn.linear_model", "report")
    _check(x, y)
    _check(*validation)
    mean, deviation = x.mean(0), x.std(0)
    deviation = np.where(deviation > 1e-9 * max(1e-30, deviation.max()), deviation, 1.0)
    rows, others = ((part - mean) / deviation for part in (x, validation[0]))
    model = linear.LogisticRegression(warm_start=True, max_iter=500, tol=1e-4)
    best: tuple[float, float, Any] | None = None
    scores = {}
    for c in sorted(cs):
        model.C = c
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a C that does not converge loses on validation
            model.fit(rows, np.array(y))
        scores[c] = float((model.predict(others) == np.array(validation[1])).mean())
        if best is None or scores[c] > best[0]:
            best = (scores[c], c, (model.coef_.copy(), model.intercept_.copy()))
    assert best is not None
    model.C, (model.coef_, model.intercept_) = best[1], best[2]
    return Probe(model, mean, deviation, best[1], scores)


def _check(x: Array, y: Sequence[Any]) -> None:
    if len(x) != len(y):
        raise DataError(f"{len(y)} labels for {len(x)} rows: each row needs its own")
