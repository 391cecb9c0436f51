"""Denoisers on real images: encoded, noised to chosen timesteps, one forward pass."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.adapters import diffusion_inputs as inputs
from vision_sae.adapters.diffusion_inputs import Conditions
from vision_sae.adapters.diffusion_loading import (
    Parse,
    dtype_of,
    load_pipeline,
    numbers,
    settings_of,
)
from vision_sae.adapters.diffusion_schedule import sampler_of
from vision_sae.data.options import joined
from vision_sae.errors import ConfigError, DataError, require
from vision_sae.provenance import Half


class NoisedAdapter:
    """The denoiser of a pipeline on images noised to training `timesteps` (0 to 999 for most).

    The image's latents are the mode of the VAE's posterior. Its noise comes from `seed` and a hash
    of its pixels: the same image has the same noise in every batch, and one noise serves all its
    timesteps. The denoiser runs once on b x T rows, image by image, with `prompt` as its text.
    An image is scaled and cut at its centre to height x width. Raises ConfigError.

        adapter = NoisedAdapter(pipe, timesteps=(25, 200), name="sd15")
    """

    prefix_tokens = registers = 0
    calls = 1

    def __init__(
        self,
        pipe: Any,
        *,
        timesteps: Sequence[int],
        prompt: str = "",
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
        name: str = "",
    ) -> None:
        self.pipe, self.model = pipe, inputs.denoiser_of(pipe)
        self.reads: Literal["images", "texts"] = "images"
        self.half: Half = "none"
        self.timesteps = _checked_timesteps(pipe, timesteps)
        self.prompt, self.seed = prompt, seed
        self.size = inputs.image_size(pipe, height, width)
        _check_vae(pipe, inputs.latent_shape(pipe, self.size)[0])
        if prompt and inputs.kind_of(self.model) == "DiTTransformer2DModel":
            raise ConfigError(f"a DiT reads no text; its prompt must be empty, not {prompt!r}")
        signal_and_noise(pipe.scheduler, self.timesteps)
        self.sampler = sampler_of(pipe.scheduler)
        origin = getattr(pipe, "name_or_path", "") or type(pipe).__name__
        self.name = joined(name or f"diffusers-noised:{origin}", self._settings())

    def _settings(self) -> dict[str, str]:
        settings = {"timesteps": ",".join(map(str, self.timesteps)), "seed": f"{self.seed}"}
        settings |= {"height": f"{self.size.height}", "width": f"{self.size.width}"}
        return settings | ({"prompt": self.prompt} if self.prompt else {})

    def prepare(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """`pixels` [b 3 h w] in -1..1 and the `seeds` of their noise [b]. Raises DataError."""
        wrong = next((item for item in items if not hasattr(item, "convert")), None)
        if wrong is not None:
            raise DataError(f"{self.name} reads images (PIL), not {type(wrong).__name__}")
        images = [image.convert("RGB") for image in items]
        processor = require("diffusers.image_processor", "diffusion").VaeImageProcessor()
        pixels = processor.preprocess(images, *self.size, resize_mode="crop")
        return {"pixels": pixels, "seeds": torch.tensor([_seed(i, self.seed) for i in images])}

    def run(self, batch: dict[str, Tensor]) -> Tensor:
        """What the denoiser predicts; row = image x T + timestep."""
        inputs.gather(self.pipe)
        with torch.no_grad():
            latents, times = self.noised(batch)
        return inputs.denoise(self.model, latents, times, self._given(latents.device))

    def noised(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Noised latents [b*T c h w] and their timesteps [b*T]."""
        clean = self._encoded(batch["pixels"])
        noise = torch.stack([_noise(seed, clean[0]) for seed in batch["seeds"].tolist()])
        signal, amount = signal_and_noise(self.pipe.scheduler, self.timesteps)
        signal, amount = (x.to(clean)[:, None, None, None] for x in (signal, amount))
        latents = signal * clean[:, None] + amount * noise[:, None]
        times = torch.tensor(self.timesteps, device=clean.device).repeat(len(clean))
        return latents.flatten(0, 1), times

    def _encoded(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        vae, dtype = self.pipe.vae, next(self.model.parameters()).dtype
        with _upcast(vae):
            latents = vae.encode(pixels.to(vae.device, vae.dtype), return_dict=False)[0].mode()
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        scaled: Tensor = (latents - shift) * vae.config.scaling_factor
        return scaled.to(dtype)

    def probe(self, batch: dict[str, Tensor]) -> Tensor:
        """One call of the denoiser alone, one row per image, on zeros."""
        tensor, b = next(self.model.parameters()), len(batch["seeds"])
        shape = (b, *inputs.latent_shape(self.pipe, self.size))
        latents = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
        times = torch.full((b,), self.timesteps[0], device=tensor.device)
        return inputs.denoise(self.model, latents, times, self._given(tensor.device))

    def _given(self, device: torch.device) -> Conditions:
        return {name: value.to(device) for name, value in self._conditions.items()}

    @cached_property
    def _conditions(self) -> Conditions:
        inputs.gather(self.pipe)
        return inputs.conditions(self.pipe, self.prompt, self.size)

    def keep(self, call: int, output: Tensor) -> Tensor | None:
        return output if call == 0 else None

    def steps_of(self, kept: list[Tensor]) -> Tensor:
        """[b T ...]."""
        slots: Tensor = kept[0].unflatten(0, (-1, len(self.timesteps)))
        return slots


def signal_and_noise(
    scheduler: Any, timesteps: Sequence[int]
) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"]]:
    """What the latents and the noise are multiplied by at training timesteps.

    sqrt(alpha-bar) and sqrt(1 - alpha-bar) (DDPM, eq. 4; for schedulers in sigmas the same after
    their scaling of the model's input), or 1 - t/T and t/T (flow matching). Raises ConfigError for
    schedulers of neither kind.
    """
    if getattr(scheduler, "alphas_cumprod", None) is not None:
        signal = scheduler.alphas_cumprod.cpu()[list(timesteps)]
        return signal**0.5, (1 - signal) ** 0.5
    if type(scheduler).__name__.startswith("FlowMatch"):
        amount = torch.tensor(timesteps) / scheduler.config.num_train_timesteps
        return 1 - amount, amount
    raise ConfigError(
        f"{type(scheduler).__name__} cannot noise images to a training timestep: it has no "
        "alphas_cumprod and is no FlowMatch scheduler; take DDIMScheduler, EulerDiscreteScheduler "
        "or FlowMatchEulerDiscreteScheduler"
    )


def _checked_timesteps(pipe: Any, timesteps: Sequence[int]) -> tuple[int, ...]:
    last = pipe.scheduler.config.num_train_timesteps - 1
    good = all(0 <= timestep <= last for timestep in timesteps)
    if not good or not timesteps or len(set(timesteps)) < len(timesteps):
        raise ConfigError(
            f"timesteps must be different training timesteps from 0 to {last}, at least one; "
            f"got {tuple(timesteps)}"
        )
    return tuple(timesteps)


def _check_vae(pipe: Any, channels: int) -> None:
    vae = getattr(pipe, "vae", None)
    if vae is None or type(vae).__name__ != "AutoencoderKL":
        raise ConfigError(
            f"real images need a `vae` that is an AutoencoderKL; {type(pipe).__name__} has "
            f"{type(vae).__name__ if vae is not None else 'none'}"
        )
    if getattr(vae.config, "latents_mean", None) is not None:
        raise ConfigError("a VAE with latents_mean and latents_std is not supported")
    if vae.config.latent_channels != channels:
        raise ConfigError(
            f"the VAE gives {vae.config.latent_channels} channels, and the denoiser takes "
            f"{channels}: models that are also given an image (inpainting) are not supported"
        )


@contextmanager
def _upcast(vae: Any) -> Iterator[None]:
    """SDXL's VAE overflows in float16; there and back changes no weight."""
    low = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if low:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if low:
            vae.to(torch.float16)


def _seed(image: Any, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed} {image.size} ".encode(), digest_size=8)
    digest.update(image.tobytes())
    return int.from_bytes(digest.digest(), "big") >> 1  # fits a signed 64-bit number


def _noise(seed: int, like: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like)


SETTINGS: dict[str, Parse] = {
    "timesteps": numbers,
    "prompt": str,
    "seed": int,
    "height": int,
    "width": int,
    "dtype": dtype_of,
}


def from_name(argument: str) -> NoisedAdapter:
    """`FOLDER?timesteps=25,200&prompt=`, with a local folder or a hub name.

    Raises ConfigError for settings, DataError for a folder that cannot be loaded.
    """
    folder, settings = settings_of(argument, SETTINGS)
    if "timesteps" not in settings:
        raise ConfigError("diffusers-noised needs timesteps, as in FOLDER?timesteps=25,200")
    pipe = load_pipeline(folder, settings.pop("dtype", torch.float32))
    return NoisedAdapter(pipe, name=f"diffusers-noised:{folder}", **settings)
