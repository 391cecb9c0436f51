"""Interventions on single predictions, and finding concepts that a task should not need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vision_sae.errors import ConfigError, DataError
from vision_sae.measures.factors import auroc
from vision_sae.recipes.bottleneck.explain import Explanation


@dataclass(frozen=True)
class Change:
    """A code set to a value, or multiplied by a factor."""

    to: float | None = None
    times: float | None = None

    def __post_init__(self) -> None:
        if (self.to is None) == (self.times is None):
            raise ConfigError("a change sets a code (to) or scales it (times), one of the two")

    def __call__(self, code: float) -> float:
        return self.to if self.to is not None else code * (self.times or 0.0)


ZERO = Change(to=0.0)


@dataclass(frozen=True)
class Edited:
    """A prediction before and after, and each changed code as (concept, before, after)."""

    before: Explanation
    after: Explanation
    changed: tuple[tuple[int, float, float], ...]

    @property
    def flipped(self) -> bool:
        return bool(self.before.predicted != self.after.predicted)


def changed_row(
    row: Any, changes: Mapping[int, Change]
) -> tuple[Any, list[tuple[int, float, float]]]:
    """One row of codes [1 s] with some of them changed. Raises DataError for several rows."""
    from scipy.sparse import csr_array

    if row.shape[0] != 1:
        raise DataError(f"an edit is of one image; got {row.shape[0]}")
    dense = row.toarray()[0]  # a single image
    told = []
    for concept, change in changes.items():
        before = float(dense[concept])
        dense[concept] = change(before)
        told.append((concept, before, float(dense[concept])))
    return csr_array(dense[None, :]), told


@dataclass(frozen=True)
class Association:
    """How well a concept tells an attribute within each class, and classes within each value of
    the attribute: mean |AUROC - 0.5| x 2, in 0..1."""

    concept: int
    name: str | None
    attribute: float
    task: float

    @property
    def irrelevant(self) -> bool:
        """It speaks of the attribute more than of the task."""
        return self.attribute > self.task


def associations(
    codes: Any,
    concepts: Sequence[int],
    y: Sequence[Any],
    attribute: Sequence[Any],
    names: Mapping[int, str],
) -> list[Association]:
    """What each concept speaks of, the attribute's most clearly first (for SHIFT without a person
    who judges, Marks et al. 2024).

    Within a class the attribute varies alone, within a value of the attribute the class does, so
    that even a strong correlation of the two is told apart by the few images that break it. Raises
    DataError when none do.
    """
    tasks, values = np.array([str(v) for v in y]), np.array([str(v) for v in attribute])
    if len(tasks) != codes.shape[0] or len(values) != codes.shape[0]:
        raise DataError(
            f"{len(tasks)} labels and {len(values)} attributes for {codes.shape[0]} images"
        )
    within_class, within_value = _contrasts(values, tasks), _contrasts(tasks, values)
    if not within_class or not within_value:
        raise DataError(
            "every class has one value of the attribute, so that nothing tells a concept of the "
            "one from a concept of the other: add images that break the rule"
        )
    columns, found = codes.tocsc(), []
    for i in concepts:
        scores = torch.from_numpy(columns[:, [i]].toarray()[:, 0])
        found.append(
            Association(
                i, names.get(i), _clarity(scores, within_class), _clarity(scores, within_value)
            )
        )
    return sorted(found, key=lambda one: one.task - one.attribute)


Contrast = tuple[Any, Any]  # images, and which of them are positive


def _contrasts(what: Any, within: Any) -> list[Contrast]:
    """For each value of `within` and each of `what` that some of its images have and some not."""
    found = []
    for group in np.unique(within):
        rows = np.flatnonzero(within == group)
        for value in np.unique(what[rows]):
            positive = what[rows] == value
            if 0 < positive.sum() < len(rows):
                found.append((torch.from_numpy(rows), torch.from_numpy(positive)))
    return found


def _clarity(scores: torch.Tensor, contrasts: Sequence[Contrast]) -> float:
    """Weighted by the smaller side of each contrast: that is how much it can tell."""
    sizes = [min(int(p.sum()), int((~p).sum())) for _, p in contrasts]
    clear = [abs(auroc(scores[rows], p) - 0.5) * 2 for rows, p in contrasts]
    return float(np.average(clear, weights=sizes))
