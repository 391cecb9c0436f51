"""What a pipeline is called with, as the pipeline itself would read it."""

import inspect
from typing import Any

from vision_sae.adapters.diffusion_inputs import denoiser_of, kind_of
from vision_sae.errors import ConfigError


def arguments(pipe: Any, args: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name, defaults too."""
    bound = inspect.signature(type(pipe).__call__).bind(pipe, *args, **given)
    bound.apply_defaults()
    named = dict(bound.arguments)
    named.pop("self", None)
    named |= named.pop("kwargs", {})
    return named


def images_asked(call: dict[str, Any]) -> int:
    """How many prompts a call has, before num_images_per_prompt."""
    prompt = call.get("prompt")
    if prompt is None:
        return len(call["prompt_embeds"])
    return 1 if isinstance(prompt, str) else len(prompt)


def check_can_guide(pipe: Any, what: str) -> None:
    """Raises ConfigError for a pipeline that never runs an unconditional half."""
    model: Any = denoiser_of(pipe)
    distilled = getattr(model.config, "time_cond_proj_dim", None) is not None
    if kind_of(model) == "FluxTransformer2DModel" or distilled:
        raise ConfigError(
            f"{what} works by classifier-free guidance, and {type(pipe).__name__} with this "
            "denoiser runs none: it takes guidance as an input"
        )


def check_guided(pipe: Any, call: dict[str, Any], what: str) -> None:
    """Raises ConfigError for a call without guidance."""
    check_can_guide(pipe, what)
    guidance = call.get("guidance_scale")
    if guidance is None or guidance <= 1:
        raise ConfigError(
            f"{what} works by classifier-free guidance, and this call has guidance_scale="
            f"{guidance}; set it above 1"
        )
