"""The bottleneck: a classifier that sees an image only through the concepts of an SAE."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vision_sae.errors import ConfigError, MismatchError
from vision_sae.recipes.bottleneck import measures
from vision_sae.recipes.bottleneck.choice import By, Point, check_choice, choose, point
from vision_sae.recipes.bottleneck.concepts import Concepts, Part
from vision_sae.recipes.bottleneck.edit import (
    Association,
    Change,
    Edited,
    associations,
    changed_row,
)
from vision_sae.recipes.bottleneck.explain import (
    ClassConcept,
    Explanation,
    class_concepts,
    explain_rows,
    reach,
)
from vision_sae.recipes.bottleneck.head import Head, Share
from vision_sae.recipes.bottleneck.labels import Labelling, held_out, targets_for, targets_of
from vision_sae.recipes.bottleneck.names import Finder
from vision_sae.recipes.bottleneck.path import PathConfig, Scale, heads
from vision_sae.recipes.bottleneck.solver import Array

Tell = Callable[[int], None]
Codes = Any  # Concepts, or a scipy sparse matrix of codes [n s]
Which = int | str | Sequence[int | str]


class Bottleneck:
    """A sparse linear head on concept scores, fitted as scikit-learn's classifiers are.

        cbm = Bottleneck().fit(concepts, labels)
        cbm.score(test, test_labels)
        cbm.explain(test.take([0]))
        cbm.without(["grass", 417]).score(test, test_labels)

    X is `Concepts`, or a scipy sparse matrix of codes [n s]; y a class per row, or a list of
    classes per row (multi-label). The head is the elastic-net optimum of one strength of a whole
    path (`solver`), chosen on validation images (`choice`: accuracy, one-se, per-class,
    per-decision with `budget`), which are given or cut from X by the hash of their keys. Settings
    of the path: see PathConfig; of all: `get_params`. `head="adam"` is the reference's head.

    After fitting: `head_`, `path_` (a Point per strength), `chosen_`, `validation_` (what the
    chosen head does on the validation images, calibration included), `removed_`
    (concepts that it does not see).
    """

    head_: Head
    path_: list[Point]
    chosen_: int
    validation_: dict[str, float]

    def __init__(
        self,
        *,
        choice: By = "accuracy",
        budget: float | None = None,
        l1_ratio: float | Sequence[float] = 0.95,
        strengths: int = 36,
        smallest: float = 1e-3,
        scale: Scale | Sequence[Scale] = "deviation",
        centre: bool = True,
        relaxed: bool = False,
        calibrate: bool = True,
        validation: float = 0.2,
        tolerance: float = 1e-4,
        head: str = "elastic-net",
    ) -> None:
        self.choice, self.budget = choice, budget
        self.l1_ratio, self.strengths, self.smallest = l1_ratio, strengths, smallest
        self.scale, self.centre, self.relaxed = scale, centre, relaxed
        self.calibrate, self.validation, self.tolerance = calibrate, validation, tolerance
        self.head = head
        self.parts_: tuple[Part, ...] = ()
        self.names_: dict[int, str] = {}
        self.removed_: list[int] = []
        self.about_: dict[str, Any] = {}

    # ---- scikit-learn's manner

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SETTINGS}

    def set_params(self, **settings: Any) -> "Bottleneck":
        """Raises ConfigError for a setting that there is not."""
        for name, value in settings.items():
            if name not in _SETTINGS:
                raise ConfigError(f"no setting {name!r}; there are: {', '.join(_SETTINGS)}")
            setattr(self, name, value)
        return self

    def fit(
        self,
        X: Codes,
        y: Labelling,
        *,
        validation: tuple[Codes, Labelling] | None = None,
        groups: Sequence[Any] | None = None,
        names: dict[int, str] | None = None,
        tell: Tell = lambda solved: None,
    ) -> "Bottleneck":
        """Fit the path and choose from it. `groups` (one per row) keep images of one thing on one
        side of the validation split; `names` are the concepts' names.

        Raises DataError for labels that do not match, a single class or a class with one example;
        ConfigError for settings out of range.
        """
        check_choice(self.choice, self.budget)
        if not 0 < self.validation < 1:
            raise ConfigError(f"validation must be a share between 0 and 1; got {self.validation}")
        codes, targets = codes_of(X), targets_of(y, _rows(X))
        self.parts_ = X.parts if isinstance(X, Concepts) else ()
        self.names_ = dict(names or {})
        self.removed_ = []
        if validation is None:
            mask = held_out(_keys(X), targets, self.validation, groups)
            other, goals = codes[mask], replace(targets, Y=targets.Y[mask])
            codes, targets = codes[~mask], replace(targets, Y=targets.Y[~mask])
        else:
            other = self._codes(validation[0])
            goals = targets_for(
                validation[1], _rows(validation[0]), targets.classes, targets.several
            )
        found = list(self._heads(codes, targets, other, goals, tell))
        self.path_ = [one for one, _ in found]
        self.chosen_ = choose(self.path_, self.choice, self.budget)
        self._take(found[self.chosen_][1], other, goals.Y)
        return self

    def _heads(self, codes: Any, targets: Any, other: Any, goals: Any, tell: Tell) -> Any:
        if self.head == "adam":
            from vision_sae.recipes.bottleneck.adam import adam_heads

            some = adam_heads(codes, targets, tell=tell)
        elif self.head == "elastic-net":
            config = PathConfig(
                _several(self.l1_ratio), self.strengths, self.smallest, _several(self.scale),
                self.centre, self.relaxed, self.tolerance,
            )  # fmt: skip
            some = heads(codes, targets, config, tell)
        else:
            raise ConfigError(f"head must be elastic-net or adam; got {self.head!r}")
        for solution, head in some:
            yield point(solution, head, other, goals), head

    def _take(self, head: Head, other: Any, Y: Array) -> None:
        """Keep a head, with its temperature and what it does on the validation images."""
        z = head.logits(other)
        plain = head.probabilities(other)
        several = head.several
        t = measures.best_temperature(z, Y, several=several) if self.calibrate else 1.0
        self.head_ = replace(head, temperature=t)
        p = self.head_.probabilities(other)
        self.validation_ = {
            "images": len(Y),
            "score": measures.score(p, Y, several=several),
            "log loss": measures.log_loss(p, Y, several=several),
            "ECE": measures.ece(p, Y, several=several),
            "ECE uncalibrated": measures.ece(plain, Y, several=several),
            "temperature": t,
        }

    def _codes(self, X: Codes) -> Any:
        """Checked codes. Raises MismatchError for those of another SAE, site or width."""
        codes = codes_of(X)
        if isinstance(X, Concepts) and self.parts_:
            check_parts(self.parts_, X.parts)
        width = self.head_.W.shape[1] if hasattr(self, "head_") else codes.shape[1]
        if codes.shape[1] != width:
            raise MismatchError(f"this bottleneck reads {width} concepts; got {codes.shape[1]}")
        return codes

    @property
    def classes_(self) -> list[Any]:
        return self._fitted.classes

    @property
    def _fitted(self) -> Head:
        if not hasattr(self, "head_"):
            raise ConfigError("this bottleneck is not fitted yet: call fit first, or load one")
        return self.head_

    def decision_function(self, X: Codes) -> Array:
        """Logits [n c], before the temperature."""
        return self._fitted.logits(self._codes(X))

    def predict_proba(self, X: Codes) -> Array:
        """Calibrated probabilities [n c]; of several labels each by itself."""
        return self._fitted.probabilities(self._codes(X))

    def predict(self, X: Codes) -> list[Any]:
        """A class per row; of several labels the list of those with a probability of one half."""
        p = self.predict_proba(X)
        if self.head_.several:
            return [[c for c, q in zip(self.classes_, row, strict=True) if q >= 0.5] for row in p]
        return [self.classes_[i] for i in p.argmax(1)]

    def score(self, X: Codes, y: Labelling) -> float:
        """Accuracy; of several labels the mean F1 of the classes. Raises DataError for classes
        that were not seen in fitting."""
        targets = targets_for(y, _rows(X), self.classes_, self._fitted.several)
        return measures.score(self.predict_proba(X), targets.Y, several=self.head_.several)

    # ---- concepts

    @property
    def find(self) -> Finder:
        """Concepts by number, name or part of a name."""
        return Finder(self._fitted.W.shape[1], self.names_, self.head_.used)

    def explain(self, X: Codes, *, of: Any = None, against: Any = None) -> list[Explanation]:
        """Why, for each image: signed contributions that sum to the logit of the predicted class,
        of class `of`, or of its lead over class `against`. Raises UnknownName."""
        return explain_rows(
            self._fitted, self._codes(X), _keys(X), self.names_, of=of, against=against
        )

    def class_concepts(self, X: Codes, top: int = 20) -> dict[Any, list[ClassConcept]]:
        """The concepts that decide for and against each class, over some images."""
        return class_concepts(self._fitted, self._codes(X), self.names_, top=top)

    def reach(self, X: Codes, of: Share = "absolute") -> dict[str, float]:
        """Mean number of concepts that reach 90, 95 and 99% of the predicted class' logit."""
        return reach(self._fitted, self._codes(X), of)

    def edit(self, X: Codes, changes: Mapping[int | str, Change], of: Any = None) -> Edited:
        """One image's prediction before and after some of its codes are changed.

        Raises as `without` does, and DataError for other than one image.
        """
        codes, key = self._codes(X), _keys(X)[:1]
        named = {i: change for one, change in changes.items() for i in self.find(one)}
        other, told = changed_row(codes, named)
        before, after = (
            explain_rows(self._fitted, x, key, self.names_, of=of)[0] for x in (codes, other)
        )
        return Edited(before, after, tuple(told))

    def associations(self, X: Codes, y: Labelling, attribute: Sequence[Any]) -> list[Association]:
        """Which of the concepts in use speak of an attribute rather than of the classes: those to
        remove when the attribute is spurious. Raises DataError."""
        return associations(self._codes(X), self.head_.used, y, attribute, self.names_)

    def refit(self, X: Codes, y: Labelling, **options: Any) -> "Bottleneck":
        """Fitted anew on the concepts that were not removed; options are those of `fit`."""
        from scipy.sparse import csr_array

        kept = np.ones(self._fitted.W.shape[1])
        kept[self.removed_] = 0
        codes = csr_array(self._codes(X).multiply(kept[None, :]))
        rows = replace(X, codes=codes) if isinstance(X, Concepts) else codes
        other = Bottleneck(**self.get_params()).fit(rows, y, **{"names": self.names_, **options})
        other.removed_, other.parts_, other.about_ = self.removed_, self.parts_, self.about_
        return other

    def without(self, concepts: Which, *, many: bool = False) -> "Bottleneck":
        """A copy that does not see these concepts (numbers or names).

        Each counts as absent; in a centred bottleneck as at its mean. Raises UnknownName for a
        name that matches none, ConfigError for one that matches many, unless `many`.
        """
        gone = self.find(concepts, many=many)
        return self._with(self._fitted.drop(gone), gone)

    def only(self, concepts: Which, *, many: bool = False) -> "Bottleneck":
        """A copy that sees these concepts only; see `without`."""
        kept = set(self.find(concepts, many=many))
        gone = [i for i in range(self._fitted.W.shape[1]) if i not in kept]
        return self._with(self.head_.drop(gone), gone)

    def _with(self, head: Head, gone: Sequence[int]) -> "Bottleneck":
        other = Bottleneck(**self.get_params())
        for name in ("path_", "chosen_", "validation_", "parts_", "names_", "about_"):
            if hasattr(self, name):
                setattr(other, name, getattr(self, name))
        other.head_ = head
        other.removed_ = sorted({*self.removed_, *gone})
        return other


_SETTINGS = [name for name in inspect.signature(Bottleneck.__init__).parameters if name != "self"]


def _several(setting: Any) -> tuple[Any, ...]:
    return (setting,) if isinstance(setting, (int, float, str)) else tuple(setting)


def check_parts(mine: Sequence[Part], theirs: Sequence[Part]) -> None:
    """Raises MismatchError unless codes are of the same SAEs, pooled alike."""
    if len(mine) != len(theirs):
        raise MismatchError(
            f"this bottleneck reads the codes of {len(mine)} SAEs; got those of {len(theirs)}"
        )
    for one, other in zip(mine, theirs, strict=True):
        if reason := one.differs(other):
            raise MismatchError(f"these are not the codes that the bottleneck reads: {reason}")


def codes_of(X: Codes) -> Any:
    """As a csr_array in float64. Raises MismatchError for what is dense."""
    from scipy.sparse import csr_array, issparse

    found = X.codes if isinstance(X, Concepts) else X
    if not issparse(found):
        raise ConfigError(f"codes are Concepts or a scipy sparse matrix; got {type(X).__name__}")
    return csr_array(found, dtype=np.float64)


def _rows(X: Codes) -> int:
    return len(X) if isinstance(X, Concepts) else int(X.shape[0])


def _keys(X: Codes) -> list[str]:
    return X.keys if isinstance(X, Concepts) else [str(i) for i in range(X.shape[0])]
