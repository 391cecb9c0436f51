"""Choose a plan's settings by what they do on validation pictures."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from vision_sae.errors import ConfigError, UnknownName
from vision_sae.recipes.unlearn.choice import Choice
from vision_sae.recipes.unlearn.evidence import Evidence
from vision_sae.recipes.unlearn.find import plan_for
from vision_sae.recipes.unlearn.plan import Plan

Measure = Callable[[Plan], float]


class Tried(NamedTuple):
    """One point of a grid and what it scored: more is better."""

    settings: Mapping[str, Any]
    score: float


class Tuned(NamedTuple):
    """The best plan, its choice, and all that was tried, in order."""

    plan: Plan
    choice: Choice
    tried: tuple[Tried, ...]


def tune(
    evidence: Evidence,
    concept: str,
    grid: Mapping[str, Sequence[Any]],
    measure: Measure,
    *,
    base: Choice | None = None,
    tell: Callable[[Tried], None] = lambda tried: None,
) -> Tuned:
    """Make and measure a plan for each point of a grid of Choice's settings; the best one.

    Of equal ones the first, so list gentle settings first. `measure` samples with the plan on
    validation prompts and seeds, never on those that results are reported on. Raises UnknownName
    for a setting that Choice does not have, ConfigError for an empty grid or a score of NaN.

        tune(evidence, "object:pizza", {"count": [50, 200], "strength": [1.0, 1.15]}, measure)
    """
    check_grid(grid)
    best: Tuned | None = None
    tried: list[Tried] = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        choice = replace(base or Choice(), **settings)
        plan = plan_for(evidence, concept, choice)
        found = Tried(settings, float(measure(plan)))
        if found.score != found.score:
            raise ConfigError(f"the measure gave NaN for {settings}; it must give a number")
        if best is None or found.score > max(each.score for each in tried):
            best = Tuned(plan, choice, ())
        tried.append(found)
        tell(found)
    if best is None:
        raise ConfigError("the grid is empty: give each setting one value or more")
    return best._replace(tried=tuple(tried))


def check_grid(grid: Mapping[str, Sequence[Any]]) -> None:
    """Raises UnknownName for a setting that Choice does not have."""
    known = [field.name for field in fields(Choice)]
    for name in grid:
        if name not in known:
            raise UnknownName("setting of a choice", name, known)
