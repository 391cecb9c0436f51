"""Choosing settings by a measure of the user's own."""

import sys
from pathlib import Path
from typing import Any

import pytest

from vision_sae.errors import ConfigError, UnknownName
from vision_sae.recipes.unlearn.choice import Choice
from vision_sae.recipes.unlearn.evidence import Evidence, observe
from vision_sae.recipes.unlearn.plan import Plan
from vision_sae.recipes.unlearn.prompts import Labelled
from vision_sae.recipes.unlearn.tune import Tried, tune
from vision_sae.sae import SAE, SAEConfig

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from diffusers_models import pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
SITE = "mid_block.attentions.0:update"


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    from vision_sae.adapters.diffusion import TrajectoryAdapter
    from vision_sae.data.prompts import Prompt

    rows = [Labelled(Prompt(f"{x} c", i), {"letter": x}) for i, x in enumerate("abab")]
    adapter = TrajectoryAdapter(pipeline("sd"), steps=2, guidance=3.0, name="tiny")
    sae = SAE(SAEConfig.of(16, 32, "relu"), seed=0).eval()
    return observe(adapter, {SITE: sae}, rows, ["letter:a"], candidates=4)


def edited(plan: Plan) -> float:
    return float((plan.edits[0].strengths != 0).any(0).sum())


def test_the_first_best_of_the_grid_is_chosen(evidence: Evidence) -> None:
    told: list[Tried] = []
    grid: dict[str, list[Any]] = {"count": [2, 8, 4], "strength": [1.0, 2.0]}
    base = Choice(where="everywhere", mode="zero")
    found = tune(evidence, "letter:a", grid, edited, base=base, tell=told.append)
    assert [(t.settings["count"], t.settings["strength"]) for t in told] == [
        (2, 1.0), (2, 2.0), (8, 1.0), (8, 2.0), (4, 1.0), (4, 2.0),
    ]  # fmt: skip
    assert found.tried == tuple(told) and [t.score for t in told] == [2, 2, 8, 8, 4, 4]
    assert (found.choice.count, found.choice.strength, found.choice.mode) == (8, 1.0, "zero")
    assert edited(found.plan) == 8


@pytest.mark.parametrize(
    ("grid", "score", "message"),
    [
        ({"counts": [1]}, 0.0, "no setting of a choice 'counts'; did you mean count"),
        ({"count": []}, 0.0, "the grid is empty: give each setting one value or more"),
        ({"count": [1]}, float("nan"), "the measure gave NaN for {'count': 1}"),
    ],
)
def test_what_cannot_be_tuned(
    evidence: Evidence, grid: dict[str, list[Any]], score: float, message: str
) -> None:
    with pytest.raises((ConfigError, UnknownName), match=message):
        tune(evidence, "letter:a", grid, lambda plan: score)
