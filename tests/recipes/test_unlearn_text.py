"""Text steering: which pass gets which sign, on every kind of pipeline."""

import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
import diffusers_models

from vision_sae.errors import ConfigError
from vision_sae.recipes.unlearn.apply import unlearn
from vision_sae.recipes.unlearn.concept_steering import ConceptSteering
from vision_sae.recipes.unlearn.plan import Plan
from vision_sae.recipes.unlearn.text import steer_text
from vision_sae.recipes.unlearn.text_layers import (
    hidden_states,
    layers_of,
    steering_vector,
    text_rows,
)
from vision_sae.sae import SAE, SAEConfig

# diffusers' schedulers give numpy tensors in a way that numpy 2 will not take for ever
pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
pipeline = cache(diffusers_models.pipeline)  # steering leaves nothing behind, as is tested
KINDS = ("sd", "sdxl", "pixart", "sd3", "flux")


def sae_of(pipe: Any) -> SAE:
    return SAE(SAEConfig.of(hidden_states(pipe, "a").shape[1], 64, "topk", k=4)).eval()


def embeddings(pipe: Any, kind: str, prompt: str = "b", negative: str = "c") -> list[Tensor]:
    """What the denoiser is given for the prompt and for the negative prompt."""
    seen: list[Tensor] = []
    denoiser = pipe.unet if kind in ("sd", "sdxl") else pipe.transformer
    name = "encoder_hidden_states"

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs[name].detach().clone())

    handle = denoiser.register_forward_pre_hook(note, with_kwargs=True)
    extra: dict[str, Any] = {"use_resolution_binning": False} if kind == "pixart" else {}
    extra |= {"true_cfg_scale": 2.0} if kind == "flux" else {"guidance_scale": 2.0}
    try:
        generator = torch.Generator().manual_seed(0)
        pipe(
            prompt, negative_prompt=negative, num_inference_steps=2, output_type="latent",
            generator=generator, **extra,
        )  # fmt: skip
    finally:
        handle.remove()
    if kind == "flux":  # two calls
        return [seen[0], seen[1]]
    uncond, cond = seen[0].chunk(2)
    return [cond, uncond]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_negative_prompts_are_told_apart(kind: str) -> None:
    """Steering towards with a strength moves the prompts as steering away moves the negatives."""
    pipe = pipeline(kind)
    sae = sae_of(pipe)
    plain = embeddings(pipe, kind, "b", "b")
    assert torch.equal(plain[0], plain[1])
    with steer_text(pipe, sae, "a", 0.5):
        away = embeddings(pipe, kind, "b", "b")
    with steer_text(pipe, sae, "a", 0.5, away=False):
        towards = embeddings(pipe, kind, "b", "b")
    with steer_text(pipe, sae, "a", 0.5, negative=False):
        alone = embeddings(pipe, kind, "b", "b")
    assert not torch.equal(away[0], plain[0]) and not torch.equal(away[0], away[1])
    assert torch.allclose(away[0], towards[1]) and torch.allclose(away[1], towards[0])
    assert torch.equal(alone[0], away[0]) and torch.equal(alone[1], plain[1])
    assert torch.equal(embeddings(pipe, kind, "b", "b")[0], plain[0])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_behind(kind: str) -> None:
    pipe = pipeline(kind)
    sae, before, own = sae_of(pipe), embeddings(pipe, kind), set(vars(pipe))
    hooks = hooks_of(pipe)
    with pytest.raises(RuntimeError, match="half way"), steer_text(pipe, sae, "a", 1.0):
        raise RuntimeError("half way")
    assert (set(vars(pipe)), hooks_of(pipe)) == (own, hooks)
    after = embeddings(pipe, kind)
    with steer_text(pipe, sae, "a", 0.0):
        zero = embeddings(pipe, kind)
    for x, y, z in zip(before, after, zero, strict=True):
        assert torch.equal(x, y) and torch.equal(x, z)


def hooks_of(pipe: Any) -> int:
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for p in parts for m in p.modules()
    )


def test_given_embeddings_leave_the_negative_pass_alone_to_run() -> None:
    """The encoder's only run is then that of the negatives: counting runs would take it wrongly."""
    pipe = pipeline("sd")
    sae = sae_of(pipe)
    given = pipe.encode_prompt("b", "cpu", 1, False)[0]
    with steer_text(pipe, sae, "a", 0.5):
        want = pipe.encode_prompt("b", "cpu", 1, True, negative_prompt="c")[1]
        found = pipe.encode_prompt(None, "cpu", 1, True, negative_prompt="c", prompt_embeds=given)
    assert torch.equal(found[1], want)


def test_the_vector_is_the_formula() -> None:
    pipe = pipeline("sd")
    sae, h = sae_of(pipe), hidden_states(pipe, "a")
    with torch.no_grad():
        sae.b_dec.normal_()
        z = (h - sae.b_dec) @ sae.W_enc.T + sae.b_enc
        want = z.clamp(min=0) @ sae.W_dec
    assert torch.allclose(steering_vector(pipe, sae, "a"), want, atol=1e-5)
    assert text_rows(pipe, ["a", "b"]).shape == (2 * len(h), h.shape[1])


def test_several_concepts_are_added_up() -> None:
    pipe = pipeline("sd")
    sae = sae_of(pipe)
    with steer_text(pipe, sae, ["a", "a"], 0.25):
        twice = embeddings(pipe, "sd")
    with steer_text(pipe, sae, "a", 0.5):
        once = embeddings(pipe, "sd")
    assert torch.allclose(twice[0], once[0], atol=1e-5)


def test_layers_of_each_pipeline() -> None:
    found = {kind: [x[:2] for x in layers_of(pipeline(kind))] for kind in KINDS}
    assert found["sd"] == [("text_encoder", 0)]
    assert found["sdxl"] == [("text_encoder", 0), ("text_encoder_2", 0)]
    assert found["flux"] == [("text_encoder_2", 0)] and found["pixart"] == [("text_encoder", 0)]
    assert [x[:2] for x in layers_of(pipeline("sd"), 1)] == [("text_encoder", 1)]


def test_the_layer_that_sdxl_reads_is_steered_too() -> None:
    """SDXL takes the hidden states before the last layer, which transformers collects by hooks."""
    pipe, layer = pipeline("sdxl"), {"text_encoder": 0, "text_encoder_2": 0}
    before = embeddings(pipe, "sdxl")
    sae = SAE(SAEConfig.of(16, 64, "topk", k=4)).eval()
    with steer_text(pipe, sae, "a", 1.0, layer=layer):
        changed = embeddings(pipe, "sdxl")
    vector = steering_vector(pipe, sae, "a", layer)
    assert torch.allclose(changed[0][0], before[0][0] - vector, atol=1e-5)
    assert torch.allclose(changed[1][0], before[1][0] + vector, atol=1e-5)


def test_bad_input_is_refused() -> None:
    pipe = pipeline("sd")
    sae = sae_of(pipe)
    with pytest.raises(ConfigError, match="reads width 5; the layers .text_encoder 0. give 8"):
        with_other = SAE(SAEConfig.of(5, 8, "topk", k=2))
        steering_vector(pipe, with_other, "a")
    with pytest.raises(ConfigError, match="text_encoder has layers 0 to 1; layer 7 was asked for"):
        layers_of(pipe, 7)
    with pytest.raises(ConfigError, match="no text encoder 'text_encoder_2'; it has text_encoder"):
        layers_of(pipe, {"text_encoder_2": 0})
    with pytest.raises(ConfigError, match="several text encoders: name the layer of each"):
        layers_of(pipeline("sdxl"), 1)
    with pytest.raises(ConfigError, match="no usual text-encoder layer for DiTPipeline"):
        layers_of(pipeline("dit"))
    with steer_text(pipe, sae, "a", 1.0), pytest.raises(ConfigError, match="steered already"):
        steer_text(pipe, sae, "b", 1.0).__enter__()
    with pytest.raises(ConfigError, match="no concept to steer by"):
        steer_text(pipe, sae, [], 1.0).__enter__()


class Letters:
    """Concepts that are letters, as the tiny tokenizer knows nothing else."""

    def prompts_of(self, concept: str) -> list[str]:
        return [f"{concept} x", f"{concept} y"]

    def others_of(self, concept: str) -> list[str]:
        return ["b x", "b y", "c x"]

    def words(self, concept: str) -> str:
        return concept


def test_as_a_method_it_trains_its_own_sae() -> None:
    pipe = pipeline("sd")
    before = embeddings(pipe, "sd")
    removal = ConceptSteering(k=2, updates=5, words=Letters()).fit(pipe, ["a"])
    with removal(pipe) as draw:
        assert not torch.equal(embeddings(draw, "sd")[0], before[0])
    assert torch.equal(embeddings(pipe, "sd")[0], before[0])


# ---- in a plan


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_plan_steers_as_the_block_does(kind: str, tmp_path: Path) -> None:
    pipe, before = pipeline(kind), embeddings(pipeline(kind), kind)
    sae, plan = sae_of(pipe), plan_of(pipe)
    with steer_text(pipe, sae, "a", 0.5):
        wanted = embeddings(pipe, kind)
    plan.save(tmp_path)
    with unlearn(pipe, tmp_path):
        found = embeddings(pipe, kind)
    with unlearn(pipe, plan.scaled(0.0)):
        none = embeddings(pipe, kind)
    for i in range(2):
        assert torch.equal(found[i], wanted[i]) and torch.equal(none[i], before[i])


def test_plans_of_text_are_added_up() -> None:
    pipe = pipeline("sd")
    plan = plan_of(pipe)
    with unlearn(pipe, plan):
        once = embeddings(pipe, "sd")
    with unlearn(pipe, [plan.scaled(0.25), plan.scaled(0.75)]):
        both = embeddings(pipe, "sd")
    assert torch.allclose(once[0], both[0], atol=1e-6)
    assert torch.allclose(once[1], both[1], atol=1e-6)


def plan_of(pipe: Any) -> Plan:
    model = SimpleNamespace(pipe=pipe, model=pipe.unet, name="tiny")
    return ConceptSteering(0.5).plan(model, sae_of(pipe), "object:a", "a")
