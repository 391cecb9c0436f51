"""Real images, noised: the noise is the scheduler's, and one forward pass is a loop's."""

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers_models as tiny

from vision_sae.adapters.diffusion_noised import NoisedAdapter, signal_and_noise
from vision_sae.errors import ConfigError, DataError
from vision_sae.extract import Reading, activations_of
from vision_sae.model.hooks import inference
from vision_sae.model.sites import Site

# diffusers' schedulers give numpy tensors in a way that numpy 2 will not take for ever
pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")

TIMES = (25, 200, 7)
MAP = Site("up_blocks.0.attentions.1", "map", 16, 64, 0, (8, 8))
BLOCK = Site("transformer_blocks.1", "tokens", 16, 64, 0, (8, 8))
SITES = {
    "sd": MAP,
    "sdxl": MAP,
    "dit": BLOCK,
    "pixart": BLOCK,
    "sd3": Site("transformer_blocks.0[1]", "tokens", 16, 64, 0, (8, 8)),
    "flux": Site("transformer_blocks.0[1]", "tokens", 32, 64, 0, (8, 8)),
}
every_pipeline = pytest.mark.parametrize("name", SITES)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@cache
def pipe_of(name: str) -> Any:
    return tiny.pipeline(name)


def adapter_of(name: str = "sd", /, **settings: Any) -> NoisedAdapter:
    sizes: dict[str, Any] = {"timesteps": TIMES, "height": tiny.SIDE, "width": tiny.SIDE}
    return NoisedAdapter(pipe_of(name), **sizes | settings)


def pictures(n: int) -> list[Image.Image]:
    noise = torch.randint(0, 256, (n, 24, 40, 3), generator=torch.Generator().manual_seed(3))
    return [Image.fromarray(image.to(torch.uint8).numpy()) for image in noise]


def acts_of(adapter: NoisedAdapter, images: list[Image.Image], site: Site) -> Tensor:
    return activations_of(adapter, adapter.prepare(images), Reading((site,)))[site.name]


@every_pipeline
def test_one_pass_is_a_loop_over_images_and_timesteps(name: str) -> None:
    site, images = SITES[name], pictures(2)
    together = acts_of(adapter_of(name), images, site)
    for i, image in enumerate(images):
        loop = [acts_of(adapter_of(name, timesteps=[t]), [image], site) for t in TIMES]
        torch.testing.assert_close(together[i], torch.cat(loop, 1)[0], rtol=1e-4, atol=1e-4)


def test_the_denoiser_is_called_as_the_pipeline_calls_it() -> None:
    adapter, pipe = adapter_of(prompt="cat"), pipe_of("sd")
    batch = adapter.prepare(pictures(2))
    with inference(adapter.model):
        found = adapter.run(batch)
        clean = pipe.vae.encode(batch["pixels"]).latent_dist.mode() * pipe.vae.config.scaling_factor
        states = pipe.encode_prompt("cat", "cpu", 1, False)[0]
        for i, t in [(i, t) for i in range(2) for t in TIMES]:
            seed = int(batch["seeds"][i])
            noise = torch.randn(clean[0].shape, generator=torch.Generator().manual_seed(seed))
            noised = pipe.scheduler.add_noise(clean[i : i + 1], noise[None], torch.tensor([t]))
            row = pipe.unet(noised, t, encoder_hidden_states=states).sample[0]
            torch.testing.assert_close(found[3 * i + TIMES.index(t)], row, rtol=1e-4, atol=1e-5)


def test_the_noise_is_that_of_ddim() -> None:
    scheduler, x, noise = tiny.ddim(), torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    signal, amount = (part[:, None, None, None] for part in signal_and_noise(scheduler, TIMES))
    expected = scheduler.add_noise(x, noise, torch.tensor(TIMES))
    assert torch.equal(signal * x + amount * noise, expected)


def test_the_noise_is_that_of_schedulers_in_sigmas_after_their_scaling() -> None:
    from diffusers import EulerDiscreteScheduler

    scheduler, x, noise = EulerDiscreteScheduler(), torch.randn(1, 4), torch.randn(1, 4)
    scheduler.set_timesteps(1000)
    for t in TIMES:
        signal, amount = signal_and_noise(scheduler, [t])
        noised = scheduler.add_noise(x, noise, torch.tensor([float(t)]))
        scheduler._step_index = None
        expected = scheduler.scale_model_input(noised, torch.tensor(float(t)))
        torch.testing.assert_close(signal * x + amount * noise, expected, rtol=1e-4, atol=1e-5)


def test_the_noise_is_that_of_flow_matching() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler, x, noise = FlowMatchEulerDiscreteScheduler(), torch.randn(1, 4), torch.randn(1, 4)
    for t in TIMES:
        signal, amount = signal_and_noise(scheduler, [t])
        expected = scheduler.scale_noise(x, torch.tensor([float(t)]), noise)
        torch.testing.assert_close(signal * x + amount * noise, expected)


def test_an_images_noise_is_its_own_in_every_batch() -> None:
    first, second = pictures(2)
    adapter = adapter_of()
    seeds = adapter.prepare([first, second])["seeds"].tolist()
    assert seeds == [adapter.prepare([image])["seeds"].item() for image in (first, second)]
    assert seeds[0] != seeds[1]
    assert adapter_of(seed=1).prepare([first])["seeds"].item() != seeds[0]


def test_latents_are_shifted_and_scaled_as_the_vae_says() -> None:
    adapter, vae = adapter_of("sd3"), pipe_of("sd3").vae
    batch = adapter.prepare(pictures(1))
    with torch.no_grad():
        mode = vae.encode(batch["pixels"]).latent_dist.mode()
        expected = (mode - vae.config.shift_factor) * vae.config.scaling_factor
        assert torch.equal(adapter._encoded(batch["pixels"]), expected)


def test_gradients_reach_the_denoiser_after_a_probe_in_inference_mode() -> None:
    adapter = adapter_of()
    batch = adapter.prepare(pictures(1))
    with inference(adapter.model):
        adapter.probe(batch)
    adapter.run(batch).sum().backward()
    assert adapter.model.conv_in.weight.grad is not None  # type: ignore[union-attr]
    adapter.model.zero_grad()


def test_pictures_of_any_mode_become_pixels() -> None:
    batch = adapter_of().prepare([image.convert("L") for image in pictures(2)])
    assert batch["pixels"].shape == (2, 3, 32, 32) and float(batch["pixels"].abs().max()) <= 1


def test_sdxls_vae_is_lifted_out_of_float16_and_put_back() -> None:
    pipe = tiny.pipeline("sd")
    pipe.vae = tiny.vae(force_upcast=True).half()
    before = [p.clone() for p in pipe.vae.parameters()]
    adapter = NoisedAdapter(pipe, timesteps=[5])
    with inference(adapter.model):
        assert adapter.run(adapter.prepare(pictures(1))).isfinite().all()
    assert pipe.vae.dtype == torch.float16
    assert all(map(torch.equal, before, pipe.vae.parameters()))


def test_the_name_says_the_settings() -> None:
    expected = "mine?timesteps=25,200,7&seed=0&height=32&width=32&prompt=a cat"
    assert adapter_of(name="mine", prompt="a cat").name == expected


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sd", {"timesteps": (1000,)}, r"timesteps from 0 to 999, at least one; got \(1000,\)"),
        ("sd", {"timesteps": (-1,)}, r"timesteps from 0 to 999"),
        ("sd", {"timesteps": ()}, r"at least one; got \(\)"),
        ("sd", {"timesteps": (3, 3)}, r"different training timesteps .* got \(3, 3\)"),
        ("dit", {"prompt": "cat"}, "a DiT reads no text; its prompt must be empty, not 'cat'"),
        ("sd3", {"width": 34}, "must be multiples of 4, such as 32; got 32 x 34"),
    ],
)
def test_settings_that_cannot_be(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter_of(name, **settings)


def test_a_scheduler_without_training_timesteps() -> None:
    from diffusers import EDMEulerScheduler

    pipe = tiny.sd(unet=pipe_of("sd").unet, scheduler=EDMEulerScheduler())
    with pytest.raises(ConfigError, match="EDMEulerScheduler cannot noise images .* take DDIM"):
        NoisedAdapter(pipe, timesteps=[5])


@pytest.mark.parametrize(
    ("vae", "message"),
    [
        (None, "need a `vae` that is an AutoencoderKL; .* has none"),
        (nn.Linear(1, 1), "an AutoencoderKL; .* has Linear"),
    ],
)
def test_a_pipeline_without_a_vae(vae: Any, message: str) -> None:
    class Pipe:
        unet, scheduler = pipe_of("sd").unet, pipe_of("sd").scheduler

    pipe = Pipe()
    pipe.vae = vae  # type: ignore[attr-defined]
    if vae is not None:
        vae.config = tiny.vae().config
    with pytest.raises(ConfigError, match=message):
        NoisedAdapter(pipe, timesteps=[5])


def test_a_unet_that_is_also_given_an_image() -> None:
    with pytest.raises(ConfigError, match="VAE gives 4 channels, and the denoiser takes 9"):
        NoisedAdapter(tiny.sd(unet=tiny.unet(in_channels=9)), timesteps=[5])


def test_a_vae_with_means() -> None:
    vae = tiny.vae(latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
    with pytest.raises(ConfigError, match="VAE with latents_mean"):
        NoisedAdapter(tiny.sd(unet=pipe_of("sd").unet, vae=vae), timesteps=[5])


def test_a_text_is_no_image() -> None:
    with pytest.raises(DataError, match=r"reads images \(PIL\), not str"):
        adapter_of().prepare(["a cat"])
