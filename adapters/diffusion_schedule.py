"""Which timesteps a pipeline's scheduler will visit, known before it runs."""

import copy
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from vision_sae.adapters.diffusion_inputs import Size, denoiser_of, kind_of, latent_shape
from vision_sae.errors import ConfigError


class Step(NamedTuple):
    """A denoising step: its timestep, and the number of the denoiser's call that stands for it."""

    timestep: int
    call: int


def sampler_of(scheduler: Any) -> str:
    """A scheduler and its settings in a word: `DDIMScheduler-1f0c9a2e`."""
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    text = json.dumps(settings, sort_keys=True, default=str)
    return f"{type(scheduler).__name__}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def timesteps_of(pipe: Any, steps: int, size: Size) -> list[float]:
    """The timestep of every call of the denoiser; the pipeline's scheduler is left as it is.

    Raises ConfigError for a number of steps that the scheduler does not take.
    """
    scheduler = copy.deepcopy(pipe.scheduler)
    if steps < 1:
        raise ConfigError(f"steps must be at least 1; got {steps}")
    try:
        with torch.inference_mode(False):
            scheduler.set_timesteps(**_arguments(pipe, scheduler, steps, size))
    except (ValueError, IndexError, ZeroDivisionError) as error:
        name = type(scheduler).__name__
        raise ConfigError(f"{name} does not take {steps} steps: {error}") from error
    found: list[float] = scheduler.timesteps.tolist()
    return found


def _arguments(pipe: Any, scheduler: Any, steps: int, size: Size) -> dict[str, Any]:
    """What the pipelines call `set_timesteps` with: Flux and SD3 shift by the size of the image."""
    model: Any = denoiser_of(pipe)
    config, kind = scheduler.config, kind_of(model)
    _, h, w = latent_shape(pipe, size)
    if kind == "FluxTransformer2DModel":
        shift = _shift(config, (h // 2) * (w // 2), 1.15)
        if config.get("use_flow_sigmas"):
            return {"num_inference_steps": steps, "mu": shift}
        sigmas = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64)
        return {"sigmas": sigmas.numpy(), "mu": shift}
    if kind == "SD3Transformer2DModel" and config.get("use_dynamic_shifting"):
        patch = model.config.patch_size
        return {"num_inference_steps": steps, "mu": _shift(config, h // patch * (w // patch), 1.16)}
    return {"num_inference_steps": steps}


def _shift(config: Any, tokens: int, largest: float) -> float:
    """Linear in the number of image tokens, as diffusers' `calculate_shift`."""
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", largest)
    slope = (high - low) / (many - few)
    return float(tokens * slope + (low - slope * few))


def all_steps(scheduler: Any, timesteps: Sequence[float], steps: int) -> list[tuple[float, int]]:
    """The distinct timesteps, each with the last call at it.

    PNDM's warm-up and Heun's correction visit a timestep twice: the last time, the latents are
    those of the trajectory. Raises ConfigError for schedulers that also go to points in between.
    """
    last = {timestep: call for call, timestep in enumerate(timesteps)}
    between = len(last) - steps - (getattr(scheduler, "order", 1) == 1)
    if between > 0:
        raise ConfigError(
            f"{type(scheduler).__name__} calls the denoiser at points between its steps "
            f"({len(last)} timesteps for {steps} steps), which are on no trajectory; take another, "
            "such as DDIMScheduler, PNDMScheduler (skip_prk_steps) or EulerDiscreteScheduler"
        )
    return list(last.items())


def chosen_steps(
    every_step: Sequence[tuple[float, int]], every: int, at: Sequence[int] | None
) -> tuple[Step, ...]:
    """Every n-th step, or those at some positions, in the order in which they run.

    Raises ConfigError for positions that are not there and for timesteps that are one when rounded.
    """
    n = len(every_step)
    if every < 1 or (every > 1 and at is not None):
        why = f"every={every} with at={tuple(at or ())}" if every > 1 else f"every={every}"
        raise ConfigError(f"keep each n-th step (every=n, from 1), or those `at`; got {why}")
    positions = list(range(0, n, every)) if at is None else sorted(at)
    wrong = [i for i in positions if not 0 <= i < n]
    if wrong or not positions or len(set(positions)) < len(positions):
        raise ConfigError(
            f"`at` takes different steps from 0 to {n - 1}, at least one; got {tuple(at or ())}"
        )
    steps = tuple(Step(round(every_step[i][0]), every_step[i][1]) for i in positions)
    if len({step.timestep for step in steps}) < len(steps):
        raise ConfigError(
            "two of the steps have the same timestep when rounded to whole numbers; keep fewer "
            "steps (every=, at=)"
        )
    return steps
