"""Denoisers along the sampling trajectories of a diffusers pipeline and its own scheduler."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, get_args

import torch
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
from vision_sae.adapters.diffusion_schedule import (
    all_steps,
    chosen_steps,
    sampler_of,
    timesteps_of,
)
from vision_sae.data.options import joined
from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError, DataError
from vision_sae.provenance import Half

Wanted = Literal["cond", "uncond", "both"]

# in these, a guided batch is [unconditional, conditional]; Flux runs no unconditional half
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)


class TrajectoryAdapter:
    """The denoiser of a pipeline at the steps of its own sampling; reads texts and Prompts.

    Of `steps` denoising steps every n-th is kept, or those `at` some positions from 0. `half` says
    which half of the guided batch: conditional, unconditional, or both. Noise comes from each
    prompt's own seed on the CPU, so that an image does not depend on the batch or the device.
    Nothing is decoded. Raises ConfigError for settings that the pipeline or its scheduler does not
    have.

        adapter = TrajectoryAdapter(pipe, steps=50, every=5, guidance=7.5, name="sd15")
    """

    prefix_tokens = registers = 0

    def __init__(
        self,
        pipe: Any,
        *,
        steps: int = 50,
        every: int = 1,
        at: Sequence[int] | None = None,
        guidance: float = 7.5,
        half: str = "cond",
        height: int | None = None,
        width: int | None = None,
        name: str = "",
    ) -> None:
        self.pipe, self.model = pipe, inputs.denoiser_of(pipe)
        self.reads: Literal["images", "texts"] = "texts"
        _check_pipeline(pipe)
        self.steps, self.guidance = steps, float(guidance)
        self.size = inputs.image_size(pipe, height, width)
        self.half: Half = self._checked_half(half)
        self.sampler = sampler_of(pipe.scheduler)
        self.visited = timesteps_of(pipe, steps, self.size)  # the timestep of every call
        kept = chosen_steps(all_steps(pipe.scheduler, self.visited, steps), every, at)
        self.timesteps = tuple(step.timestep for step in kept)
        self.calls = kept[-1].call + 1
        self._kept_calls = {step.call for step in kept}
        self._guided = self._is_guided(self.guidance)
        self.name = joined(name or _origin(pipe), self._settings(every, at))

    def _settings(self, every: int, at: Sequence[int] | None) -> dict[str, str]:
        kept = {"every": f"{every}"} if at is None else {"at": ",".join(map(str, sorted(at)))}
        settings = {"steps": f"{self.steps}", **kept, "guidance": f"{self.guidance:g}"}
        settings["half"] = self.half
        return settings | {"height": f"{self.size.height}", "width": f"{self.size.width}"}

    # ---- guidance and its halves

    def _is_guided(self, guidance: float) -> bool:
        """Whether the pipeline runs two halves. Distilled models take guidance as an input."""
        config: Any = self.model.config
        flux = inputs.kind_of(self.model) == "FluxTransformer2DModel"
        embedded = getattr(config, "time_cond_proj_dim", None) is not None
        return guidance > 1 and not flux and not embedded

    def _checked_half(self, half: str) -> Half:
        if half not in get_args(Wanted):
            raise ConfigError(f"half must be {', '.join(get_args(Wanted))}; got {half!r}")
        if half != "cond" and not self._is_guided(self.guidance):
            raise ConfigError(self._no_half(half, self.guidance))
        return half  # type: ignore[return-value]

    def _no_half(self, half: str, guidance: float) -> str:
        return (
            f"half={half!r} needs an unconditional half, and {type(self.pipe).__name__} runs none "
            f"at guidance {guidance:g}; take half='cond'"
            + (", or a guidance above 1" if self._is_guided(2.0) else "")
        )

    # ---- the contract

    def prepare(self, items: Sequence[Any]) -> list[Prompt]:
        """Prompts that all say their guidance.

        Raises DataError for an item that is neither a text nor a Prompt, and for a prompt whose
        guidance gives no unconditional half where one is wanted.
        """
        prompts = [self._prompt(item) for item in items]
        for prompt in prompts:
            if self.half != "cond" and not self._is_guided(prompt.guidance or 0):
                raise DataError(
                    f"prompt {prompt.text!r}: {self._no_half(self.half, prompt.guidance or 0)}"
                )
        return prompts

    def _prompt(self, item: Any) -> Prompt:
        prompt = Prompt(item) if isinstance(item, str) else item
        if not isinstance(prompt, Prompt):
            raise DataError(f"{self.name} reads texts (str or Prompt), not {type(item).__name__}")
        return prompt if prompt.guidance is not None else prompt._replace(guidance=self.guidance)

    def run(self, batch: Sequence[Prompt]) -> Tensor:
        """A whole trajectory: the final latents, as the pipeline gives them.

        Raises DataError for prompts of different guidances, as a batch has one.
        """
        guidance = _one_guidance(batch)
        self._guided, rows = self._is_guided(guidance), len(batch)
        extra = {"use_resolution_binning": False} if "PixArt" in type(self.pipe).__name__ else {}
        inputs.gather(self.pipe)
        with _undisturbed(self.pipe), self._checked(rows * (1 + self._guided)):
            latents: Tensor = self.pipe(
                prompt=[prompt.text for prompt in batch],
                height=self.size.height,
                width=self.size.width,
                num_inference_steps=self.steps,
                guidance_scale=guidance,
                generator=[torch.Generator("cpu").manual_seed(prompt.seed) for prompt in batch],
                output_type="latent",
                return_dict=False,
                **extra,
            )[0]
        return latents

    @contextmanager
    def _checked(self, rows: int) -> Iterator[None]:
        """The denoiser is called as was foretold, or DataError."""

        def check(module: Any, args: Any, kwargs: Any) -> None:
            latents = args[0] if args else kwargs["hidden_states"]
            visited = self.pipe.scheduler.timesteps.tolist()
            if visited != self.visited or len(latents) != rows:
                raise DataError(
                    f"{type(self.pipe).__name__} ran {len(visited)} timesteps from {visited[:3]} "
                    f"on {len(latents)} rows; {len(self.visited)} from {self.visited[:3]} on "
                    f"{rows} rows were expected (its scheduler must stay as it was)"
                )
            handle.remove()

        handle = self.model.register_forward_pre_hook(check, with_kwargs=True, prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def probe(self, batch: Sequence[Prompt]) -> Tensor:
        """One call of the denoiser alone, one row per prompt, on zeros and the empty prompt."""
        tensor = next(self.model.parameters())
        shape = (len(batch), *inputs.latent_shape(self.pipe, self.size))
        latents = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
        times = torch.full((len(batch),), self.timesteps[0], device=tensor.device)
        given = {name: value.to(tensor.device) for name, value in self._empty.items()}
        return inputs.denoise(self.model, latents, times, given, self.guidance)

    @cached_property
    def _empty(self) -> Conditions:
        inputs.gather(self.pipe)
        return inputs.conditions(self.pipe, "", self.size)

    def keep(self, call: int, output: Tensor) -> Tensor | None:
        """The wanted half of a call's output [B ...]; with both halves all of it; or nothing."""
        if call not in self._kept_calls:
            return None
        if not self._guided or self.half == "both":
            return output
        uncond, cond = output.chunk(2)
        return cond if self.half == "cond" else uncond

    def steps_of(self, kept: list[Tensor]) -> Tensor:
        """[b slots ...]: a slot for each timestep; with both halves two: cond, uncond."""
        if self.half != "both":
            return torch.stack(kept, 1)
        halves = [half for output in kept for half in reversed(output.chunk(2))]
        return torch.stack(halves, 1)


def _check_pipeline(pipe: Any) -> None:
    if not {c.__name__ for c in type(pipe).__mro__} & set(PIPELINES):
        raise ConfigError(
            f"trajectories of a {type(pipe).__name__} cannot be read; those of "
            f"{', '.join(PIPELINES)} can (NoisedAdapter reads a DiT on real images)"
        )


def _origin(pipe: Any) -> str:
    return f"diffusers:{getattr(pipe, 'name_or_path', '') or type(pipe).__name__}"


def _one_guidance(batch: Sequence[Prompt]) -> float:
    found = {prompt.guidance for prompt in batch if prompt.guidance is not None}
    if len(found) != 1:
        listed = ", ".join(f"{guidance:g}" for guidance in sorted(found)) or "none"
        raise DataError(
            f"the prompts of one batch must have one guidance; this one has {listed}: take a batch "
            "for each"
        )
    return found.pop()


@contextmanager
def _undisturbed(pipe: Any) -> Iterator[None]:
    """No progress bar, and a copy of the scheduler: a run that ends early leaves nothing behind."""
    scheduler, bar = pipe.scheduler, dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.scheduler = copy.deepcopy(scheduler)
    pipe.set_progress_bar_config(**{**bar, "disable": True})
    try:
        yield
    except BaseException:
        pipe.maybe_free_model_hooks()  # what the pipeline does at its end
        raise
    finally:
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(**bar)


SETTINGS: dict[str, Parse] = {
    "steps": int,
    "every": int,
    "at": numbers,
    "guidance": float,
    "half": str,
    "height": int,
    "width": int,
    "dtype": dtype_of,
}


def from_name(argument: str) -> TrajectoryAdapter:
    """`FOLDER?steps=50&every=5&guidance=7.5&half=cond`, with a local folder or a hub name.

    Raises ConfigError for settings, DataError for a folder that cannot be loaded.
    """
    folder, settings = settings_of(argument, SETTINGS)
    pipe = load_pipeline(folder, settings.pop("dtype", torch.float32))
    return TrajectoryAdapter(pipe, name=f"diffusers:{folder}", **settings)
