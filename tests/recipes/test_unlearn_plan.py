"""Plans: what they hold, their files, and to which model they belong."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.errors import CheckpointError, ConfigError, MismatchError
from vision_sae.recipes.unlearn.plan import (
    DESCRIPTION,
    TABLES,
    TENSORS,
    Gate,
    Mode,
    Plan,
    SiteEdit,
    sample_of,
    schedule_of,
)
from vision_sae.recipes.unlearn.readout import Readout

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from diffusers_models import pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")


def edit_of(m: int = 3, steps: int = 2, **other: Any) -> SiteEdit:
    tables: dict[str, Any] = {name: torch.rand(steps, m) for name in TABLES}
    tables["bias"] = torch.rand(steps)
    tables |= {"latents": torch.arange(m), "timesteps": torch.arange(steps).flip(0) * 400}
    return SiteEdit("mid_block:update", "abc", **(tables | other))


def plan_of(*edits: SiteEdit, **other: Any) -> Plan:
    given: dict[str, Any] = {"concept": "object:cat", "model": "tiny", "schedule": {"timesteps": 9}}
    given["weights"] = torch.rand(5)
    return Plan(edits=edits, **(given | other))


def same(a: SiteEdit, b: SiteEdit) -> bool:
    mine, theirs = vars(a), vars(b)
    tensors = [n for n, value in mine.items() if isinstance(value, Tensor)]
    rest = set(mine) - set(tensors) - {"readout"}
    return all(torch.equal(mine[n], theirs[n]) for n in tensors) and all(
        mine[n] == theirs[n] for n in rest
    )


# ---- files


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from([m for m in get_args(Mode) if m != "transport"]),
    gates=st.lists(st.sampled_from(get_args(Gate)), min_size=1, max_size=3),
    half=st.sampled_from(["cond", "uncond", "both"]),
    window=st.tuples(st.integers(0, 500), st.integers(500, 1000)),
    m=st.integers(1, 6),
    steps=st.integers(1, 4),
    with_readout=st.booleans(),
)
def test_a_plan_comes_back_from_its_files(
    tmp_path: Path, mode: Any, gates: list[str], half: Any, window: tuple[int, int], m: int,
    steps: int, with_readout: bool,
) -> None:  # fmt: skip
    ones = torch.rand(m)
    readout = Readout(torch.rand(m, 4), ones, ones, torch.rand(m, 4)) if with_readout else None
    edit = edit_of(
        m, steps, mode=mode, where="+".join(gates), half=half, window=window, readout=readout
    )
    plan = plan_of(edit, edit_of(2), about={"prompts": 3})
    again = Plan.load(plan.save(tmp_path / "plan"))
    assert all(same(a, b) for a, b in zip(plan.edits, again.edits, strict=True))
    assert (again.concept, again.model, again.about) == ("object:cat", "tiny", {"prompts": 3})
    assert torch.equal(again.weights, plan.weights) and again.schedule == {"timesteps": 9}
    found = again.edits[0].readout
    assert (found is not None) == with_readout
    if found and readout:
        assert all(torch.equal(t, found.tensors()[n]) for n, t in readout.tensors().items())


def test_a_map_comes_back_too(tmp_path: Path) -> None:
    edit = edit_of(3, mode="transport", write=torch.rand(1, 3, 4), shift=torch.rand(2, 4))
    again = Plan.load(plan_of(edit).save(tmp_path)).edits[0]
    assert edit.write is not None and again.write is not None
    assert torch.equal(edit.write, again.write) and same(edit, again)


def test_a_folder_that_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no plan \(plan.json and plan.safetensors\)"):
        Plan.load(tmp_path)
    plan_of(edit_of()).save(tmp_path)
    (tmp_path / TENSORS).write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match="is no plan"):
        Plan.load(tmp_path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    plan_of(edit_of()).save(tmp_path)
    told = json.loads((tmp_path / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps(told | {"format": 9}))
    with pytest.raises(CheckpointError, match="plan format 9; known: 2"):
        Plan.load(tmp_path)


# ---- settings


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mode": "erase"}, "mode must be one of multiple, zero, .*; got 'erase'"),
        ({"where": "image+here"}, "gate must be one of everywhere, threshold, .*; got 'here'"),
        ({"half": "left"}, "half must be one of cond, uncond, both; got 'left'"),
        ({"reads": "noise"}, "reads must be one of codes, activations; got 'noise'"),
        ({"window": (9, 3)}, r"a window is \(from, to\) in timesteps, from <= to; got \(9, 3\)"),
        ({"mode": "transport"}, "mode 'transport' needs a learnt map"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        edit_of(**setting)


def test_a_scaled_plan_scales_strengths_alone() -> None:
    plan = plan_of(edit_of())
    half = plan.scaled(0.5)
    assert torch.equal(half.edits[0].strengths, plan.edits[0].strengths * 0.5)
    assert torch.equal(half.edits[0].mean, plan.edits[0].mean)


# ---- to whom it belongs


def belonging(pipe: Any) -> Plan:
    return plan_of(edit_of(), weights=sample_of(pipe.unet), schedule=schedule_of(pipe))


def test_a_plan_knows_its_model_also_in_half_precision() -> None:
    pipe = pipeline("sd")
    plan = belonging(pipe)
    plan.check(pipe, pipe.unet)
    plan.check(pipe, pipe.unet.to(torch.bfloat16))


def test_another_model_or_schedule_is_refused() -> None:
    pipe = pipeline("sd")
    plan = belonging(pipe)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(1.1)
    with pytest.raises(MismatchError, match="made for tiny, whose weights differ from those"):
        plan.check(pipe, pipe.unet)
    pipe = pipeline("sd")
    with pytest.raises(MismatchError, match="made for the schedule .*; this pipeline's DDIM"):
        replace(plan, schedule={"timesteps": 1000, "prediction": "v_prediction"}).check(
            pipe, pipe.unet
        )
