"""The command `steer`, between its options and its output."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vision_sae.cli import show
from vision_sae.errors import ConfigError, claim_new
from vision_sae.jobs.loading import load_sae
from vision_sae.model.adapter import load_adapter
from vision_sae.recipes.unlearn.concept_steering import ConceptSteering
from vision_sae.recipes.unlearn.inputs import Asked, prompts_of, tell_next, words_of
from vision_sae.recipes.unlearn.plan import DESCRIPTION, Plan
from vision_sae.recipes.unlearn.prompts import check
from vision_sae.recipes.unlearn.text_layers import Layers


class Steering(NamedTuple):
    """What is added to the text encoder, and how it is found."""

    words: str | None
    strength: float
    negative: bool
    sae: str | None  # None: one is trained
    layers: Sequence[str]


def steer(asked: Asked, how: Steering, out: Path, overwrite: bool, as_json: bool) -> Plan:
    claim_new(out, DESCRIPTION, "a plan", overwrite=overwrite)
    rows = prompts_of(asked, 1)
    check(rows, asked.concept)
    adapter: Any = load_adapter(asked.model)
    adapter.pipe.set_progress_bar_config(disable=True)
    text = how.words or words_of(asked)
    found = ConceptSteering(how.strength, layer=layers_from(how.layers), negative=how.negative)
    texts = sorted({row.prompt.text for row in rows})
    sae = load_sae(how.sae) if how.sae else found.trained_on(adapter.pipe, texts)
    plan = found.plan(adapter, sae, asked.concept, text)
    plan.save(out)
    if as_json:
        show.as_json(plan.describe())
    else:
        edits = [(e.component, e.layer, e.strength) for e in plan.text]
        show.grid(f"away from {text!r}", ("encoder", "layer", "strength"), edits)
        tell_next(out)
    return plan


def layers_from(given: Sequence[str]) -> Layers | None:
    """ "9", or "text_encoder=9" of each encoder; None where none is given. Raises ConfigError."""
    if len(given) == 1 and given[0].isdecimal():
        return int(given[0])
    named = [re.fullmatch(r"(\w+)=(\d+)", text) for text in given]
    pairs = [(found[1], int(found[2])) for found in named if found]
    if len(dict(pairs)) < len(given):
        raise ConfigError(
            "--layer takes a number, or ENCODER=NUMBER once for each encoder, as text_encoder=9; "
            f"got {' '.join(given)}"
        )
    return dict(pairs) or None
