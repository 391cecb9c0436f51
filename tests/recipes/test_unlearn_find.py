"""Choosing latents: by count, by percentile, per step, as published; and what find refuses."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.recipes.unlearn import statistics
from vision_sae.recipes.unlearn.choice import Choice
from vision_sae.recipes.unlearn.evidence import Evidence, nearest, observe
from vision_sae.recipes.unlearn.find import chosen_latents, find, plan_for
from vision_sae.recipes.unlearn.labelled import LabelledRows, labelled_rows
from vision_sae.recipes.unlearn.prompts import Labelled
from vision_sae.recipes.unlearn.scores import SCORES
from vision_sae.recipes.unlearn.statistics import Contrast, pooled, sampled, times_sampled
from vision_sae.sae import SAE, SAEConfig

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from diffusers_models import pipeline

from vision_sae.adapters.diffusion import TrajectoryAdapter

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
SITE, OTHER_SITE = "mid_block.attentions.0:update", "up_blocks.0.attentions.0:update"
D, S, STEPS = 16, 32, 3
PROMPTS = [
    Labelled(Prompt(f"{o} {s}", 10 * i), {"object": o, "style": s})
    for i, (o, s) in enumerate((o, s) for o in "abc" for s in "xy")
]


def sae_of(family: str = "relu", seed: int = 0, **options: Any) -> SAE:
    return SAE(SAEConfig.of(D, S, family, **options), seed=seed).eval()


def adapter_of(half: str = "cond") -> TrajectoryAdapter:
    return TrajectoryAdapter(pipeline("sd"), steps=STEPS, guidance=3.0, half=half, name="tiny")


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return observe(adapter_of(), {SITE: sae_of()}, PROMPTS, ["object:a", "style:x"])


def contrast(mean: Tensor, other: Tensor | None = None) -> Contrast:
    zero = torch.zeros_like(mean)
    return Contrast(mean, zero if other is None else other, zero, zero, zero, zero)


def chosen(given: Contrast, choice: Choice) -> Tensor:
    """Of an SAE whose atoms are unit vectors."""
    return chosen_latents(given, torch.eye(given.mean.shape[1]), choice)


# ---- by count


@given(st.integers(1, 12), st.integers(0, 5), st.booleans())
def test_exactly_so_many_latents_are_chosen(count: int, seed: int, per_step: bool) -> None:
    """Codes of four values alone, so that there are ties; no latent may come in because of one."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randint(0, 4, (3, 10), generator=generator).float()
    found = chosen(contrast(mean), Choice(count=count, per_step=per_step))
    assert found.sum(1).tolist() == [min(count, 10)] * 3


@pytest.mark.parametrize("score", SCORES)
def test_a_concept_that_changes_nothing_still_gets_its_count(score: str) -> None:
    found = chosen(contrast(torch.zeros(2, 6)), Choice(score=score, count=2))
    assert found.sum(1).tolist() == [2, 2]


def test_those_with_the_largest_scores_are_chosen() -> None:
    mean = torch.tensor([[5.0, 0.0, 1.0, 3.0], [0.0, 1.0, 0.0, 4.0]])
    over_all = chosen(contrast(mean), Choice(count=1))
    assert over_all.nonzero()[:, 1].tolist() == [3, 3]  # mean scores 2.5, 0.5, 0.5, 3.5
    each = chosen(contrast(mean), Choice(count=1, per_step=True))
    assert each.nonzero()[:, 1].tolist() == [0, 3]


def test_a_small_code_of_a_long_atom_counts_more_than_a_larger_one_of_a_short_atom() -> None:
    atoms = torch.tensor([[1.0, 0.0], [0.0, 10.0]])
    found = chosen_latents(contrast(torch.tensor([[3.0, 1.0]])), atoms, Choice(count=1))
    assert found.tolist() == [[False, True]]


# ---- by percentile


@pytest.mark.parametrize("percentile", [0.0, 50.0, 90.0, 99.999])
@pytest.mark.parametrize("per_step", [False, True])
def test_a_percentile_is_torch_quantile(percentile: float, per_step: bool) -> None:
    mean = torch.rand(4, 50, generator=torch.Generator().manual_seed(0))
    found = chosen(contrast(mean), Choice(percentile=percentile, per_step=per_step))
    for t in range(4):
        scores = mean[t] if per_step else mean.mean(0)
        wanted = scores > torch.quantile(scores, percentile / 100)
        assert torch.equal(found[t], wanted)
    if percentile == 99.999:
        assert found.sum(1).tolist() == [1] * 4


# ---- one pass or two


def test_one_pass_of_sampling_finds_what_two_find(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    adapter, saes, concepts = adapter_of(), {SITE: sae_of()}, ["object:a", "style:x"]
    assert times_sampled(adapter, saes, PROMPTS) == 1
    monkeypatch.setattr(statistics, "KEPT", 0)
    assert times_sampled(adapter, saes, PROMPTS) == 2
    twice = observe(adapter, saes, PROMPTS, concepts, tell=told.append)
    assert sum(told) == 2 * len(PROMPTS)
    assert torch.equal(twice.codes[SITE], evidence.codes[SITE])
    assert torch.equal(twice.candidates[SITE], evidence.candidates[SITE])
    monkeypatch.undo()
    told.clear()
    observe(adapter, saes, PROMPTS, concepts, tell=told.append)
    assert sum(told) == len(PROMPTS)


# ---- as published


def test_saeuron_chooses_as_the_published_code(evidence: Evidence) -> None:
    """A[c] [prompts T s]: token-mean codes; one score, quantile and threshold per step."""
    adapter, saes = adapter_of(), {SITE: sae_of("topk", k=4)}
    plan = find(adapter, saes, PROMPTS, "object:a", compat="saeuron", percentile=90.0)
    codes = pooled(adapter, saes, PROMPTS, {SITE: torch.arange(S)})[SITE]
    own = torch.tensor([row.labels["object"] == "a" for row in PROMPTS])
    m_c, m_o = codes[own].mean(0), codes[~own].mean(0)
    groups = [(f, v) for f, values in (("object", "abc"), ("style", "xy")) for v in values]
    theta = torch.stack(
        [codes[[row.labels[f] == v for row in PROMPTS]].mean(0) for f, v in groups]
    ).mean(0)
    (edit,) = plan.edits
    for t in range(STEPS):
        s = m_c[t] / (m_c[t].sum() + 1e-8) - m_o[t] / (m_o[t].sum() + 1e-8)
        wanted = set((s > torch.quantile(s, 0.9)).nonzero()[:, 0].tolist())
        assert set(edit.latents[edit.strengths[t] > 0].tolist()) == wanted and len(wanted) == 4
    torch.testing.assert_close(edit.mean, m_c[:, edit.latents], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(edit.theta, theta[:, edit.latents], atol=1e-5, rtol=1e-4)
    assert (edit.mode, edit.where, edit.half) == ("multiple", "threshold", "both")
    assert edit.multiplier == -1 and edit.saeuron_sign and edit.readout is None
    assert set(edit.strengths.unique().tolist()) == {0.0, 1.0}


def test_saeuron_takes_one_latent_a_step_by_default() -> None:
    (edit,) = find(adapter_of(), {SITE: sae_of()}, PROMPTS, "object:a", compat="saeuron").edits
    assert edit.strengths.sum(1).tolist() == [1.0] * STEPS


# ---- what the plan says


def test_count_strength_and_gate_of_a_plan(evidence: Evidence) -> None:
    choice = Choice(count=3, detectors=4, strength=0.5, window=(100, 900))
    (edit,) = plan_for(evidence, "object:a", choice).edits
    edited = edit.strengths > 0
    assert edited.sum(1).tolist() == [3] * STEPS and edit.strengths.max() == 0.5
    assert ((edit.detector != 0).sum(1) == 4).all()
    assert 4 <= len(edit.latents) <= 7 and edit.window == (100, 900)
    assert edit.timesteps.tolist() == list(adapter_of().timesteps)


def test_a_plan_without_an_image_gate_holds_the_edited_latents_alone(evidence: Evidence) -> None:
    (edit,) = plan_for(evidence, "object:a", Choice(count=3, where="everywhere")).edits
    assert len(edit.latents) == 3 and not edit.detector.any()


def test_towards_another_concept_replaces_by_its_means(evidence: Evidence) -> None:
    plan = plan_for(evidence, "object:a", Choice(count=3, towards="object:b"))
    wanted = evidence.statistics[SITE].contrast("object:a", "object:b")
    (edit,) = plan.edits
    assert torch.equal(edit.other, wanted.other[:, edit.latents])
    assert plan.about["towards"] == "object:b"


def test_the_nearest_concept_is_of_the_same_factor(evidence: Evidence) -> None:
    means = {o: evidence.statistics[SITE].contrast(f"object:{o}").mean for o in "abc"}
    apart = {o: float((means[o] - means["a"]).square().sum()) for o in "bc"}
    near = min(apart, key=apart.__getitem__)
    assert nearest(evidence, "object:a") == f"object:{near}"
    assert plan_for(evidence, "object:a", Choice(towards="nearest")).about["towards"] == (
        f"object:{near}"
    )
    (left,) = set("bc") - {near}
    assert nearest(evidence, "object:a", [f"object:{near}"]) == f"object:{left}"
    with pytest.raises(DataError, match="ask for no style that could stand in for style:x"):
        nearest(evidence, "style:x", ["style:y"])


def test_several_sites_have_an_edit_each() -> None:
    saes = {SITE: sae_of(), OTHER_SITE: sae_of("topk", seed=1, k=4)}
    plan = find(adapter_of(), saes, PROMPTS, "style:x", mode="replace", count=2, detectors=5)
    assert plan.sites == (SITE, OTHER_SITE)
    first, second = plan.edits
    assert first.readout is not None and second.readout is None
    assert first.sae != second.sae


# ---- errors


def test_concepts_that_cannot_be_found() -> None:
    def of(prompts: Any, concept: str, **choice: Any) -> None:
        find(adapter_of(), {SITE: sae_of()}, prompts, concept, **choice)

    with pytest.raises(UnknownName, match="no prompts of concept 'object:d'; did you mean object"):
        of(PROMPTS, "object:d")
    with pytest.raises(DataError, match="all 2 prompts ask for object:a; others are needed"):
        of(PROMPTS[:2], "object:a")
    with pytest.raises(UnknownName, match="no compat 'saeron'; did you mean saeuron"):
        of(PROMPTS, "object:a", compat="saeron")
    with pytest.raises(ConfigError, match="statistics are of one half of the guided batch"):
        find(adapter_of("both"), {SITE: sae_of()}, PROMPTS, "object:a")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"score": "saeurn"}, UnknownName, "no score 'saeurn'; did you mean saeuron"),
        ({"mode": "remove"}, ConfigError, "mode must be one of multiple, zero.*got 'remove'"),
        ({"half": "left"}, ConfigError, "half must be one of cond, uncond, both; got 'left'"),
        ({"count": 0}, ConfigError, "must be at least 1; got 0, 48"),
        ({"detectors": 0}, ConfigError, "must be at least 1; got 64, 0"),
        ({"percentile": 100.0}, ConfigError, "from 0 to below 100; got 100.0"),
        ({"mode": "transport"}, ConfigError, "leads to another concept: give towards="),
    ],
)
def test_settings_out_of_range(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Choice(**settings)


def test_a_gate_that_is_not_there(evidence: Evidence) -> None:
    with pytest.raises(ConfigError, match="gate must be one of everywhere, threshold, image, mask"):
        plan_for(evidence, "object:a", Choice(where="images"))


def test_towards_a_concept_that_is_not_there(evidence: Evidence) -> None:
    with pytest.raises(UnknownName, match="no concept 'object:plain'"):
        plan_for(evidence, "object:a", Choice(towards="object:plain"))


# ---- latents that are given, and rows to assign latents by


def test_given_latents_are_edited_and_no_others(evidence: Evidence) -> None:
    choice = Choice(mode="clamp", detectors=4, count=9)
    (edit,) = plan_for(evidence, "object:a", choice, latents={SITE: [7, 3]}).edits
    changed = edit.latents[(edit.strengths != 0).any(0)]
    assert changed.tolist() == [3, 7] and len(edit.latents) <= 6  # and those of the gate


@pytest.mark.parametrize(
    ("latents", "told"),
    [
        ({OTHER_SITE: [1]}, f"given for {OTHER_SITE}; the evidence is of {SITE}"),
        ({SITE: [1, S]}, rf"has latents 0 to {S - 1}; got \[{S}\]"),
        ({SITE: []}, "got none"),
    ],
)
def test_given_latents_must_be_there(evidence: Evidence, latents: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan_for(evidence, "object:a", latents=latents)


def test_labelled_rows_are_tokens_of_the_prompts_that_ask() -> None:
    """Of few rows, all that a site gives, whatever the batches."""
    concepts, adapter = ["object:a", "style:y"], adapter_of()
    all_tokens = next(sampled(adapter, [SITE], PROMPTS, 6))[1][SITE]
    found = labelled_rows(adapter, [SITE], PROMPTS, concepts, per_step=10**6, batch_size=4)[SITE]
    t = all_tokens.shape[2]
    assert found.rows.shape == (len(PROMPTS) * STEPS * t, D)
    for i, row in enumerate(PROMPTS):
        part = slice(i * STEPS * t, (i + 1) * STEPS * t)
        want = [float(row.labels["object"] == "a"), float(row.labels["style"] == "y")]
        assert found.labels[part].unique(dim=0).tolist() == [want]
        mine = found.rows[part].view(STEPS, t, D).sort(1).values  # drawn in a random order
        torch.testing.assert_close(mine, all_tokens[i].sort(1).values, atol=1e-4, rtol=1e-3)
    fewer = labelled_rows(adapter, [SITE], PROMPTS, concepts, per_step=2)[SITE]
    assert len(fewer.rows) == len(PROMPTS) * STEPS * 2
    with pytest.raises(ConfigError, match="per_step must be at least 1; got 0"):
        labelled_rows(adapter, [SITE], PROMPTS, concepts, per_step=0)


def test_batches_of_labelled_rows_come_round_evenly() -> None:
    made = LabelledRows(torch.arange(10.0)[:, None], torch.arange(10.0)[:, None])
    stream = made.batches(4, seed=1)
    seen = [next(stream) for _ in range(5)]
    assert all(torch.equal(rows, labels) for rows, labels in seen)
    counts = torch.cat([rows for rows, _ in seen]).long().flatten().bincount()
    assert counts.tolist() == [2] * 10
