"""Baselines: what they do to a call, and that the pipeline is as before after the block."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.model.adapter import fingerprint
from vision_sae.recipes.unlearn.baselines import (
    CrossAttentionTuning,
    DifferenceOfMeans,
    NegativePrompt,
    RandomLatents,
    SafeGuidance,
    VocabularyWords,
)
from vision_sae.recipes.unlearn.baselines.cross_attention import cross_attention
from vision_sae.recipes.unlearn.baselines.random_latents import live_latents
from vision_sae.recipes.unlearn.baselines.words import left_alone
from vision_sae.recipes.unlearn.plan import Plan, SiteEdit, sample_of, schedule_of
from vision_sae.recipes.unlearn.readout import Readout
from vision_sae.recipes.unlearn.removal import Method
from vision_sae.sae import SAE, SAEConfig

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from diffusers_models import pipeline

# diffusers' schedulers give numpy tensors in a way that numpy 2 will not take for ever
pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
SITE = "mid_block.attentions.0:update"


class Letters:
    """Concepts that are letters, as the tiny tokenizer knows nothing else."""

    def prompts_of(self, concept: str) -> list[str]:
        return [f"{concept} x", f"{concept} y"] if concept != "none" else []

    def others_of(self, concept: str) -> list[str]:
        return ["b x", "b y", "c x"]

    def words(self, concept: str) -> str:
        return concept


WORDS = Letters()
METHODS: dict[str, Method] = {
    "negative": NegativePrompt(WORDS),
    "safe": SafeGuidance(words=WORDS),
    "means": DifferenceOfMeans([SITE], steps=3, images=4, batch_size=2, words=WORDS),
    "tuning": CrossAttentionTuning(
        updates=2, images=2, batch_size=2, steps=2, keep=1.0, lr=1e-2, words=WORDS
    ),
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipeline("sd")


def call(draw: Any, prompts: Sequence[str] | str = ("a x", "b y"), **options: Any) -> Tensor:
    count = 1 if isinstance(prompts, str) else len(prompts)
    seeds = [torch.Generator().manual_seed(i) for i in range(count)]
    given: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
    given |= {"output_type": "latent", "generator": seeds} | options
    prompt = prompts if isinstance(prompts, str) else list(prompts)
    result: Tensor = draw(prompt=prompt, **given).images
    return result


def hooks_of(pipe: Any) -> int:
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for p in parts for m in p.modules()
    )


def test_words_of_the_vocabulary() -> None:
    words = VocabularyWords()
    assert words.words("object:pizza") == "pizza" and words.words("style:neon") == "neon style"
    assert words.prompts_of("object:pizza")[:1] == ["a pizza"]
    assert all("pizza" not in text for text in words.others_of("object:pizza"))
    assert all(text.endswith("in neon style") for text in words.prompts_of("style:neon"))
    assert not set(words.prompts_of("style:neon")) & set(words.others_of("style:neon"))
    with pytest.raises(UnknownName, match="no concept 'object:piza'; did you mean object:pizza"):
        words.words("object:piza")


def test_others_are_without_every_concept_that_is_removed() -> None:
    others = left_alone(VocabularyWords(), "object:pizza", ["object:pizza", "style:neon"])
    assert others and not any("neon" in text or "pizza" in text for text in others)
    with pytest.raises(DataError, match="no prompts without 'a'.*a, b, c"):

        class Few(Letters):
            def prompts_of(self, concept: str) -> list[str]:
                return self.others_of(concept)

        left_alone(Few(), "a", ["a", "b", "c"])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_changes_images_and_leaves_no_trace(pipe: Any, name: str) -> None:
    before, weights, hooks = call(pipe), fingerprint(pipe.unet), hooks_of(pipe)
    removal = METHODS[name].fit(pipe, ["a"])
    assert torch.equal(call(pipe), before)
    with removal(pipe) as draw:
        inside = call(draw)
    with pytest.raises(RuntimeError, match="half way"), removal(pipe):
        raise RuntimeError("half way")
    assert inside.isfinite().all() and not torch.equal(inside, before)
    assert torch.equal(call(pipe), before)
    assert (fingerprint(pipe.unet), hooks_of(pipe)) == (weights, hooks)


@pytest.mark.parametrize("name", METHODS)
def test_a_removal_serves_another_copy_of_the_pipeline_and_several_images(name: str) -> None:
    removal = METHODS[name].fit(pipeline("sd"), ["a", "b"])
    with removal(pipeline("sd")) as draw:
        two = call(draw, "a x", num_images_per_prompt=2, generator=torch.Generator().manual_seed(0))
        assert two.shape[0] == 2
        assert call(draw, "a x").shape[0] == 1


@pytest.mark.parametrize("name", ["negative", "safe"])
@pytest.mark.parametrize("kind", ["sdxl", "pixart", "sd3"])
def test_guidance_works_on_other_pipelines(name: str, kind: str) -> None:
    pipe = pipeline(kind)
    extra = {"use_resolution_binning": False} if kind == "pixart" else {}
    before = call(pipe, **extra)
    with METHODS[name].fit(pipe, ["a"])(pipe) as draw:
        assert not torch.equal(call(draw, **extra), before)
    assert torch.equal(call(pipe, **extra), before)


@pytest.mark.parametrize("name", ["negative", "safe"])
def test_without_guidance_there_is_nothing_to_guide(pipe: Any, name: str) -> None:
    with (
        METHODS[name].fit(pipe, ["a"])(pipe) as draw,
        pytest.raises(ConfigError, match="guidance_scale=1.0; set it above 1"),
    ):
        call(draw, guidance_scale=1.0)
    with pytest.raises(ConfigError, match="FluxPipeline with this denoiser runs none"):
        METHODS[name].fit(pipeline("flux"), ["a"])


# ---- negative prompt


def test_the_negative_prompt_is_the_concepts_words(pipe: Any) -> None:
    want = call(pipe, negative_prompt=["a, b"] * 2)
    with NegativePrompt(WORDS).fit(pipe, ["a", "b"])(pipe) as draw:
        assert torch.equal(call(draw), want)
        assert torch.equal(
            call(draw, negative_prompt=["z"] * 2), call(pipe, negative_prompt=["z, a, b"] * 2)
        )
        assert torch.equal(call(draw, "a x"), call(pipe, "a x", negative_prompt="a, b"))
    with pytest.raises(DataError, match="no concept to remove; name at least one"):
        NegativePrompt(WORDS).fit(pipe, [])


# ---- safe latent guidance


def test_safe_guidance_is_its_formula(pipe: Any) -> None:
    """A slow twin: the sampling loop written out, with three passes."""
    s = SafeGuidance(scale=3.0, warmup=0.4, threshold=0.02, momentum=0.3, beta=0.4, words=WORDS)
    states = [pipe.encode_prompt(t, "cpu", 1, False)[0] for t in ("", "a x", "a")]
    pipe.scheduler.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 16, 16, generator=generator) * pipe.scheduler.init_noise_sigma
    v = torch.zeros(())
    for i, t in enumerate(pipe.scheduler.timesteps):
        with torch.no_grad():
            u, c, e = (pipe.unet(x, t, encoder_hidden_states=h)[0] for h in states)
        mu = torch.where(c - e < s.threshold, ((c - e).abs() * s.scale).clamp(max=1), 0.0)
        gamma = mu * (e - u) + s.momentum * v
        v = s.beta * v + (1 - s.beta) * gamma
        guided = u + 3.0 * (c - u - (gamma if i >= 2 else 0))
        x = pipe.scheduler.step(guided, t, x).prev_sample
    with s.fit(pipe, ["a"])(pipe) as draw:
        for _ in range(2):  # the second call begins anew
            assert torch.allclose(call(draw, "a x", num_inference_steps=4), x, atol=1e-4)


# ---- difference of means


def test_means_are_those_of_all_activations_at_once(pipe: Any) -> None:
    few = DifferenceOfMeans([SITE], steps=3, images=6, batch_size=2, words=WORDS)
    one, many = few.learn(pipe, "a")[SITE], replace(few, batch_size=6).learn(pipe, "a")[SITE]
    for a, b in zip(one, many, strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-3, rtol=1e-3)
    assert one.concept.shape == (3, 16) and len(one.timesteps) == 3


def test_means_are_taken_once_for_the_same_removal(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = DifferenceOfMeans([SITE], steps=3, images=4, words=WORDS)
    learnt: list[str] = []
    learn = DifferenceOfMeans.learn

    def counted(self: Any, pipe: Any, concept: str, removed: Any = ()) -> Any:
        learnt.append(concept)
        return learn(self, pipe, concept, removed)

    monkeypatch.setattr(DifferenceOfMeans, "learn", counted)
    for concepts in (["a"], ["a"], ["a", "b"], ["a", "b"]):  # "a" beside "b" has other others
        method.fit(pipe, concepts)
    assert learnt == ["a", "a", "b"]
    assert len(method.known) == 5  # and what each concept's own prompts give, twice used for "a"


def test_strength_zero_is_the_identity_and_gates_shut_do_nothing(pipe: Any) -> None:
    method = DifferenceOfMeans([SITE], steps=3, images=4, words=WORDS)
    learnt, before = method.learn(pipe, "a"), call(pipe)
    with replace(method, strength=0.0).removal([learnt])(pipe) as draw:
        assert torch.equal(call(draw), before)
    shut = {SITE: learnt[SITE]._replace(bias=torch.full((3,), -1e9))}
    with method.removal([shut])(pipe) as draw:
        assert torch.equal(call(draw), before)
    for way in ("replace", "project"):
        everywhere = replace(method, way=way, where="everywhere", strength=3.0)
        with everywhere.removal([learnt])(pipe) as draw:
            assert not torch.equal(call(draw), before)


def test_projecting_takes_the_concepts_part_off(pipe: Any) -> None:
    from vision_sae.recipes.unlearn.baselines.means import _Change
    from vision_sae.recipes.unlearn.calls import Guidance
    from vision_sae.recipes.unlearn.change import Clock

    method = DifferenceOfMeans([SITE], steps=3, images=4, words=WORDS, where="everywhere")
    learnt = method.learn(pipe, "a")[SITE]
    clock = Clock(pipe.unet)
    clock.now = int(learnt.timesteps[1])
    v, other = (learnt.concept - learnt.other)[1], learnt.other[1]
    x = other + torch.randn(2, 5, 16)
    change = _Change(replace(method, way="project"), [learnt], clock, Guidance(None))
    along = (change(x) - other) @ v / v.norm()
    assert torch.allclose(along, ((x - other) @ v / v.norm()).clamp(max=0), atol=1e-4)


def test_settings_of_means_are_checked(pipe: Any) -> None:
    with pytest.raises(ConfigError, match="way must be replace or project; got 'turn'"):
        DifferenceOfMeans([SITE], way="turn")
    with pytest.raises(ConfigError, match="needs at least one site"):
        DifferenceOfMeans([])
    with pytest.raises(UnknownName, match="no site 'mid_block.attention"):
        DifferenceOfMeans(["mid_block.attention"], steps=2, images=2, words=WORDS).fit(pipe, ["a"])
    with pytest.raises(DataError, match="no prompts for the concept 'none'"):
        DifferenceOfMeans([SITE], steps=2, images=2, words=WORDS).fit(pipe, ["none"])


# ---- random latents


def plan_of(pipe: Any, sae: SAE, latents: Tensor, where: str, family: str) -> Plan:
    m = len(latents)
    row = torch.arange(1.0, m + 1)[None]
    readout = Readout.of(sae, latents) if family != "topk" else None
    edit = SiteEdit(
        SITE, fingerprint(sae), latents, torch.tensor([1]), row, row, row + 1, row, row,
        torch.ones(1), where=where, mode="clamp", readout=readout,
    )  # fmt: skip
    return Plan("a", (edit,), "tiny", sample_of(pipe.unet), schedule_of(pipe))


@pytest.mark.parametrize("where", ["everywhere", "image"])
@pytest.mark.parametrize("family", ["topk", "relu"])
def test_random_latents_take_the_place_of_a_plans(pipe: Any, where: str, family: str) -> None:
    sae = SAE(SAEConfig.of(16, 32, family)).eval()
    plan = plan_of(pipe, sae, torch.tensor([3, 5]), where, family)
    method = RandomLatents(lambda pipe, concepts: [plan], {SITE: sae}, {SITE: torch.arange(20)})
    (edit,) = method.swapped(plan, torch.Generator().manual_seed(0)).edits
    changed = edit.latents[edit.strengths[0] != 0]
    assert len(changed) == 2 and not set(changed.tolist()) & {3, 5}
    assert changed.max() < 20 and edit.strengths.sum() == plan.edits[0].strengths.sum()
    seen = edit.latents[edit.detector[0] != 0]
    assert seen.tolist() == ([3, 5] if where == "image" else changed.tolist())
    before = call(pipe)
    with method.fit(pipe, ["a"])(pipe) as draw:
        assert not torch.equal(call(draw), before)
    assert torch.equal(call(pipe), before)


def test_random_latents_need_enough_that_live(pipe: Any) -> None:
    sae = SAE(SAEConfig.of(16, 32, "relu"))
    plan = plan_of(pipe, sae, torch.tensor([3, 5]), "everywhere", "relu")
    few = RandomLatents(lambda pipe, concepts: [plan], {SITE: sae}, {SITE: torch.tensor([3, 4])})
    with pytest.raises(DataError, match="1 live latents at .* are not in the plan, which edits 2"):
        few.fit(pipe, ["a"])
    with pytest.raises(ConfigError, match="live latents for no site and SAEs for none"):
        replace(few, saes={}, live={}).fit(pipe, ["a"])


def test_live_latents_are_those_active_often_enough() -> None:
    active = torch.zeros(2, 3, 5)
    active[0, 1, 4], active[..., 2] = 0.3, 1e-5
    assert live_latents(active).tolist() == [4]


# ---- fine-tuning


def test_tuning_moves_the_answer_towards_the_goal(pipe: Any) -> None:
    """Of cross-attention's parameters alone."""
    names = cross_attention(pipe.unet)
    assert names and all(".attn2." in name for name in names)
    method = CrossAttentionTuning(updates=25, lr=8e-3, images=4, batch_size=4, steps=2, words=WORDS)
    removal = method.fit(pipe, ["a"])
    x, t = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor(500)
    held = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
    given, empty = (pipe.encode_prompt(text, "cpu", 1, False)[0] for text in ("a x", ""))

    def answer(h: Tensor) -> Tensor:
        out: Tensor = pipe.unet(x, t, encoder_hidden_states=h.expand(4, -1, -1))[0]
        return out

    with torch.no_grad():
        asked, plain = answer(given), answer(empty)
        goal = plain - (asked - plain)
        with removal(pipe):
            tuned = answer(given)
            moved = {n for n, p in pipe.unet.named_parameters() if not torch.equal(p, held[n])}
        assert torch.equal(answer(given), asked)
    assert moved and moved <= set(names)
    assert (tuned - goal).norm() < 0.9 * (asked - goal).norm()


def test_a_denoiser_without_cross_attention_cannot_be_tuned() -> None:
    with pytest.raises(ConfigError, match="SD3Transformer2DModel has no parameters in attn2"):
        CrossAttentionTuning(words=WORDS).fit(pipeline("sd3"), ["a"])
