"""What a pipeline is called with, and whether its batches hold two halves."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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


class Guidance:
    """Whether a call of the denoiser holds [unconditional, conditional], inside `following`.

    Most pipelines have a property for it; PixArt's says it to `encode_prompt` alone, and Flux has
    no unconditional half in its batches.
    """

    PROPERTY = "do_classifier_free_guidance"

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.told = pipe, False

    def __call__(self) -> bool:
        return bool(getattr(self.pipe, self.PROPERTY, self.told))

    @contextmanager
    def following(self) -> Iterator[None]:
        encode = getattr(self.pipe, "encode_prompt", None)
        known = hasattr(type(self.pipe), self.PROPERTY)
        if known or not encode or self.PROPERTY not in inspect.signature(encode).parameters:
            yield
            return
        with wrapped(self.pipe, "encode_prompt", self._note):
            yield

    def _note(self, given: Mapping[str, Any]) -> None:
        self.told = bool(given.get(self.PROPERTY, True))


@contextmanager
def wrapped(pipe: Any, method: str, before: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Call `before` with the arguments by name on every call of a pipeline's method."""
    inner, own = getattr(pipe, method), method in vars(pipe)
    known = inspect.signature(inner)

    def wrapper(*args: Any, **given: Any) -> Any:
        before(known.bind(*args, **given).arguments)
        return inner(*args, **given)

    object.__setattr__(pipe, method, wrapper)
    try:
        yield
    finally:
        if own:
            object.__setattr__(pipe, method, inner)
        else:
            object.__delattr__(pipe, method)
