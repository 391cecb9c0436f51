"""Trajectories: they are the pipeline's own, and what is kept of them is what a plain hook sees."""

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers_models as tiny

from vision_sae.adapters.diffusion import TrajectoryAdapter
from vision_sae.data import open_data
from vision_sae.data.prompts import Prompt, PromptSource
from vision_sae.errors import ConfigError, DataError, StoreError
from vision_sae.extract import Reading, activations_of, describe, extract
from vision_sae.model.adapter import fingerprint
from vision_sae.model.hooks import capture, inference
from vision_sae.model.sites import Site
from vision_sae.store import Store

# diffusers' schedulers give numpy tensors in a way that numpy 2 will not take for ever
pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")

PROMPTS = [Prompt("a cat", 5), Prompt("dog", 2**40)]
SETTINGS: dict[str, Any] = {"steps": 4, "guidance": 3.0, "height": tiny.SIDE, "width": tiny.SIDE}
MAP = Site("up_blocks.0.attentions.1", "map", 16, 64, 0, (8, 8))
IMAGE = Site("transformer_blocks.0[1]", "tokens", 16, 64, 0, (8, 8))
SITES = {
    "sd": [MAP, Site("mid_block.attentions.0:update", "map", 16, 64, 0, (8, 8))],
    "sdxl": [MAP],
    "pixart": [Site("transformer_blocks.1", "tokens", 16, 64, 0, (8, 8))],
    "sd3": [IMAGE, Site("transformer_blocks.0", "tokens", 16, 8 + 256, 0, None)],
    "flux": [
        Site("transformer_blocks.0[1]", "tokens", 32, 64, 0, (8, 8)),
        Site("single_transformer_blocks.0[1]", "tokens", 32, 64, 0, (8, 8)),
    ],
}
every_pipeline = pytest.mark.parametrize("name", SITES)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """diffusers and transformers say a lot about tiny models."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@cache
def pipe_of(name: str) -> Any:
    return tiny.pipeline(name)


def adapter_of(name: str = "sd", /, **settings: Any) -> TrajectoryAdapter:
    return TrajectoryAdapter(pipe_of(name), **SETTINGS | settings)


def own_call(name: str, prompts: list[Prompt] = PROMPTS, guidance: float = 3.0) -> Tensor:
    """As a user would call the pipeline."""
    extra = {"use_resolution_binning": False} if name == "pixart" else {}
    latents: Tensor = pipe_of(name)(
        [prompt.text for prompt in prompts],
        num_inference_steps=4,
        guidance_scale=guidance,
        height=tiny.SIDE,
        width=tiny.SIDE,
        generator=[torch.Generator().manual_seed(prompt.seed) for prompt in prompts],
        output_type="latent",
        **extra,
    ).images
    return latents


def seen_by_a_hook(name: str, site: Site, guidance: float = 3.0) -> list[Tensor]:
    """The module's output in every call of the user's own sampling."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        seen.append(parts[int(site.name.endswith("[1]"))].clone())

    module = (getattr(pipe_of(name), "unet", None) or pipe_of(name).transformer).get_submodule(
        site.module
    )
    handle = module.register_forward_hook(hook)
    own_call(name, guidance=guidance)
    handle.remove()
    return seen


def kept_of(adapter: TrajectoryAdapter, site: Site, prompts: list[Prompt] = PROMPTS) -> Tensor:
    return activations_of(adapter, adapter.prepare(prompts), Reading((site,)))[site.name]


def rows(output: Tensor) -> Tensor:
    return output.flatten(2).transpose(1, 2) if output.ndim == 4 else output


# ---- the pipeline's own trajectory


@every_pipeline
def test_a_trajectory_is_bit_by_bit_that_of_the_users_own_call(name: str) -> None:
    adapter, pipe = adapter_of(name), pipe_of(name)
    expected, scheduler, before = own_call(name), pipe.scheduler, fingerprint(adapter.model)
    with inference(adapter.model):
        plain = adapter.run(adapter.prepare(PROMPTS))
        sites = [site.name for site in SITES[name]]
        with capture(adapter.model, sites, keep=adapter.keep, calls=adapter.calls):
            captured = adapter.run(adapter.prepare(PROMPTS))
    assert torch.equal(plain, expected) and torch.equal(captured, expected)
    assert pipe.scheduler is scheduler and pipe._progress_bar_config == {"disable": True}
    assert torch.equal(own_call(name), expected) and fingerprint(adapter.model) == before


@every_pipeline
def test_what_is_kept_is_what_a_plain_hook_sees(name: str) -> None:
    for site in SITES[name][:1]:
        outputs = seen_by_a_hook(name, site)
        assert len(outputs) == 4
        kept = kept_of(adapter_of(name, at=(0, 2)), site)
        cond = [rows(output if name == "flux" else output[2:]) for output in outputs]
        assert torch.equal(kept, torch.cat([cond[0], cond[2]], 1))


def test_halves_are_unconditional_and_conditional() -> None:
    outputs = [rows(output) for output in seen_by_a_hook("sd", MAP)]
    uncond, cond = ([output[half] for output in outputs] for half in (slice(2), slice(2, 4)))
    assert torch.equal(kept_of(adapter_of(half="cond"), MAP), torch.cat(cond, 1))
    assert torch.equal(kept_of(adapter_of(half="uncond"), MAP), torch.cat(uncond, 1))
    both = [part for pair in zip(cond, uncond, strict=True) for part in pair]
    assert torch.equal(kept_of(adapter_of(half="both"), MAP), torch.cat(both, 1))
    assert not torch.equal(cond[0], uncond[0])


def test_the_first_half_is_that_of_the_empty_prompt() -> None:
    """Checked without diffusers' order: an empty prompt without guidance gives the same rows."""
    uncond = kept_of(adapter_of(half="uncond", at=[0]), MAP)
    empty = [Prompt("", prompt.seed) for prompt in PROMPTS]
    alone = kept_of(adapter_of(half="cond", at=[0], guidance=1.0), MAP, empty)
    torch.testing.assert_close(uncond, alone, rtol=1e-5, atol=1e-5)


def test_without_guidance_the_only_half_is_the_conditional_one() -> None:
    outputs = seen_by_a_hook("sd", MAP, guidance=1.0)
    assert len(outputs[0]) == 2
    kept = kept_of(adapter_of(guidance=1.0), MAP)
    assert torch.equal(kept, torch.cat([rows(output) for output in outputs], 1))


def test_a_prompts_own_guidance_comes_first() -> None:
    own = [prompt._replace(guidance=1.0) for prompt in PROMPTS]
    assert torch.equal(kept_of(adapter_of(), MAP, own), kept_of(adapter_of(guidance=1.0), MAP))


def test_an_image_does_not_depend_on_the_batch() -> None:
    both = kept_of(adapter_of(), MAP)
    alone = torch.cat([kept_of(adapter_of(), MAP, [prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(alone, both, rtol=1e-4, atol=1e-4)
    other = kept_of(adapter_of(), MAP, [PROMPTS[0]._replace(seed=6)])
    assert not torch.allclose(other, both[:1], atol=1e-3)


def test_a_text_is_a_prompt_of_seed_0() -> None:
    assert adapter_of().prepare(["cat"]) == [Prompt("cat", 0, 3.0)]


@pytest.mark.parametrize(
    "scheduler",
    [
        "DDIMScheduler",
        "PNDMScheduler",
        "HeunDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_a_run_that_ends_early_leaves_nothing_behind(scheduler: str) -> None:
    import diffusers

    config = pipe_of("sd").scheduler.config
    options = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    made = getattr(diffusers, scheduler).from_config(config, **options)
    pipe = tiny.sd(unet=pipe_of("sd").unet, scheduler=made)
    adapter = TrajectoryAdapter(pipe, **SETTINGS, at=(0, 1))
    batch = adapter.prepare(PROMPTS)
    with inference(adapter.model):
        whole = adapter.run(batch)
        for _ in range(2):
            kept = kept_of(adapter, MAP)  # stops after the second step
            assert torch.equal(adapter.run(batch), whole)
    assert torch.equal(kept_of(adapter, MAP), kept)
    assert pipe.scheduler is made and "_progress_bar_config" in vars(pipe)


# ---- steps and timesteps


@pytest.mark.parametrize(
    ("scheduler", "options", "timesteps", "calls"),
    [
        ("DDIMScheduler", {"clip_sample": False}, (751, 501, 251, 1), (0, 1, 2, 3)),
        ("PNDMScheduler", {"skip_prk_steps": True}, (751, 501, 251, 1), (0, 2, 3, 4)),
        ("EulerDiscreteScheduler", {}, (999, 666, 333, 0), (0, 1, 2, 3)),
        ("HeunDiscreteScheduler", {}, (999, 666, 333, 0), (0, 2, 4, 6)),
    ],
)
def test_the_timesteps_are_those_of_the_scheduler(
    scheduler: str, options: dict[str, Any], timesteps: tuple[int, ...], calls: tuple[int, ...]
) -> None:
    import diffusers

    made = getattr(diffusers, scheduler)(steps_offset=1, **options)
    pipe = tiny.sd(unet=pipe_of("sd").unet, scheduler=made)
    adapter = TrajectoryAdapter(pipe, **SETTINGS)
    assert adapter.timesteps == timesteps and adapter.calls == calls[-1] + 1
    empty = torch.zeros(4, 1)
    assert tuple(i for i in range(9) if adapter.keep(i, empty) is not None) == calls
    assert len(kept_of(adapter, MAP)) == 2  # the foretold timesteps are checked by the run


def test_steps_are_chosen_in_the_order_in_which_they_run() -> None:
    assert adapter_of(every=3).timesteps == (751, 1)
    assert adapter_of(at=(3, 0)).timesteps == (751, 1)
    assert adapter_of(at=(1,)).calls == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"steps": 1001}, "DDIMScheduler does not take 1001 steps: .*1000"),
        ({"at": (4,)}, r"different steps from 0 to 3, at least one; got \(4,\)"),
        ({"at": ()}, r"different steps from 0 to 3, at least one; got \(\)"),
        ({"at": (1, 1)}, r"different steps from 0 to 3.*got \(1, 1\)"),
        ({"every": 0}, "from 1.*; got every=0"),
        ({"every": 2, "at": (1,)}, r"got every=2 with at=\(1,\)"),
        ({"half": "left"}, "half must be cond, uncond, both; got 'left'"),
        ({"half": "uncond", "guidance": 1.0}, "none at guidance 1; take half='cond', or a guid"),
        ({"half": "both", "guidance": 0.0}, "half='both' needs an unconditional half"),
        ({"height": 31}, "must be multiples of 2, such as 32; got 31 x 32"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter_of(**settings)


def test_flux_has_no_unconditional_half() -> None:
    with pytest.raises(ConfigError, match="FluxPipeline runs none at guidance 3; take half='cond'"):
        adapter_of("flux", half="uncond")


@pytest.mark.parametrize("options", [{"skip_prk_steps": False}, None])
def test_schedulers_with_points_between_steps_are_refused(options: Any) -> None:
    from diffusers import KDPM2DiscreteScheduler, PNDMScheduler

    made = KDPM2DiscreteScheduler(steps_offset=1)
    if options is not None:
        made = PNDMScheduler(steps_offset=1, **options)
    pipe = tiny.sd(unet=pipe_of("sd").unet, scheduler=made)
    with pytest.raises(ConfigError, match="points between its steps .* take another, such as DDIM"):
        TrajectoryAdapter(pipe, steps=8)


def test_timesteps_that_round_to_one_are_refused() -> None:
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(use_karras_sigmas=True, steps_offset=1)
    pipe = tiny.sd(unet=pipe_of("sd").unet, scheduler=scheduler)
    with pytest.raises(ConfigError, match="same timestep when rounded .* keep fewer"):
        TrajectoryAdapter(pipe, steps=500)


# ---- pipelines and prompts that are refused


def test_a_dit_pipeline_has_no_trajectory_for_texts() -> None:
    with pytest.raises(ConfigError, match="of a DiTPipeline cannot be read; those of StableDiff"):
        TrajectoryAdapter(pipe_of("dit"))


def test_a_pipeline_without_a_denoiser_says_what_it_has() -> None:
    class Other:
        components = {"vae": None, "prior": None}

    with pytest.raises(ConfigError, match="Other has no denoiser.*`unet`.*has prior, vae"):
        TrajectoryAdapter(Other())


def test_a_denoiser_of_another_class_is_named() -> None:
    class Other:
        unet = nn.Linear(1, 1)

    with pytest.raises(ConfigError, match="Linear is no denoiser that can be read; .*UNet2DCond"):
        TrajectoryAdapter(Other())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_class_embeds": 7}, "U-Net with num_class_embeds=7 needs more than a text"),
        (
            {
                "addition_embed_type": "image",
                "encoder_hid_dim_type": "image_proj",
                "encoder_hid_dim": 8,
            },
            "U-Net with encoder_hid_dim_type='image_proj' needs more",
        ),
    ],
)
def test_a_unet_that_needs_more_than_a_text(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrajectoryAdapter(tiny.sd(unet=tiny.unet(**options)))


def test_prompts_of_two_guidances_are_not_one_batch() -> None:
    adapter = adapter_of()
    batch = adapter.prepare(["cat", Prompt("dog", guidance=5.0)])
    with pytest.raises(DataError, match="one guidance; this one has 3, 5: take a batch for each"):
        adapter.run(batch)


def test_a_prompt_without_the_wanted_half_is_named() -> None:
    with pytest.raises(DataError, match="prompt 'cat': half='both' needs .* at guidance 1; take"):
        adapter_of(half="both").prepare([Prompt("cat", guidance=1.0)])


def test_an_image_is_no_prompt() -> None:
    with pytest.raises(DataError, match=r"reads texts \(str or Prompt\), not Image"):
        adapter_of().prepare([Image.new("RGB", (4, 4))])


def test_a_scheduler_that_was_exchanged_is_noticed() -> None:
    pipe = tiny.sd(unet=pipe_of("sd").unet)
    adapter = TrajectoryAdapter(pipe, **SETTINGS)
    pipe.scheduler = tiny.ddim(timestep_spacing="trailing")
    with pytest.raises(DataError, match="were expected .its scheduler must stay as it was"):
        adapter.run(adapter.prepare(PROMPTS))


# ---- what is remembered


def test_a_store_is_not_continued_with_another_scheduler(tmp_path: Path) -> None:
    """But an SAE that was trained on it reads the timesteps of any."""
    data, folder = PromptSource(str(prompts_in(tmp_path))), tmp_path / "acts"
    first = extract(adapter_of(name="tiny"), data, MAP.name, folder)
    pipe = tiny.sd(unet=pipe_of("sd").unet, scheduler=tiny.ddim(prediction_type="v_prediction"))
    other = TrajectoryAdapter(pipe, **SETTINGS, name="tiny")
    with pytest.raises(StoreError, match="another job .sampler .*DDIMScheduler-"):
        extract(other, data, MAP.name, folder)
    again = describe(other, data, MAP, "all", "float32")
    assert again.provenance.sampler != first.provenance.sampler
    assert first.provenance.differs(again.provenance) is None


def prompts_in(folder: Path) -> Path:
    (folder / "prompts.txt").write_text("a cat\n")
    return folder / "prompts.txt"


def test_the_name_says_the_settings() -> None:
    adapter = adapter_of(name="mine", at=(2, 0))
    expected = "mine?steps=4&at=0,2&guidance=3&half=cond&height=32&width=32"
    assert adapter.name == expected


@pytest.mark.parametrize(("half", "slots"), [("cond", 2), ("both", 4)])
def test_a_store_of_prompts_remembers_timesteps(half: Any, slots: int, tmp_path: Path) -> None:
    """Of two guidances in one table, each has its batches."""
    table = "prompt,guidance\na cat,\na dog,\na bird,5\n"
    (tmp_path / "prompts.csv").write_text(table)
    adapter = adapter_of(every=2, half=half, name="tiny")
    data = open_data(str(tmp_path / "prompts.csv"))
    index = extract(adapter, data, MAP.name, tmp_path / "store", batch_size=2)
    assert index.provenance.timesteps == (751, 251) and index.provenance.half == half
    assert index.tokens_per_image == slots * 64
    assert index.provenance.sampler.startswith("DDIMScheduler-")
    prompts = [Prompt("a cat", 0), Prompt("a dog", 1), Prompt("a bird", 2, 5.0)]
    expected = torch.cat([kept_of(adapter, MAP, [prompt]) for prompt in prompts])
    acts = Store(tmp_path / "store").acts([0, 1, 2])
    torch.testing.assert_close(acts.view_as(expected), expected, rtol=1e-4, atol=1e-4)
