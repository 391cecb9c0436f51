"""Draw what is asked, in batches whose make-up does not matter: noise is of each prompt's seed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.files import write_tensors
from vision_sae.recipes.unlearn.benchmark.world import Ask, World

Pictures = UInt8[Tensor, "n 3 h w"]


def draw(
    run: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 3.0,
    batch: int = 64,
    tell: Callable[[int], None] = lambda pictures: None,
    **settings: Any,
) -> Pictures:
    """One picture for each prompt and seed; `run` is a pipeline or what a removal gives.

    Raises DataError for other than one seed per prompt, or for no prompts.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise DataError(
            f"{len(prompts)} prompts and {len(seeds)} seeds; pass one seed for each prompt, and "
            "at least one of both"
        )
    parts = []
    for start in range(0, len(prompts), batch):
        images = run(
            prompt=list(prompts[start : start + batch]),
            generator=[torch.Generator("cpu").manual_seed(s) for s in seeds[start : start + batch]],
            num_inference_steps=steps, guidance_scale=guidance, output_type="pt", **settings,
        ).images  # fmt: skip
        parts.append((images.float().clamp(0, 1) * 255).round().byte().cpu())
        tell(len(images))
    return torch.cat(parts)


def draw_asks(world: World, run: Any, asks: Sequence[Ask], batch: int = 64) -> Pictures:
    return draw(
        run, [ask.text for ask in asks], [ask.seed for ask in asks],
        steps=world.steps, guidance=world.guidance, batch=batch,
    )  # fmt: skip


def unit(pictures: Pictures) -> Float[Tensor, "n 3 h w"]:
    """Bytes as numbers in 0..1."""
    return pictures.float() / 255


class Plain:
    """The unedited pictures, each drawn once; with a file they outlive the process."""

    def __init__(self, world: World, file: Path | None = None, batch: int = 64) -> None:
        self.world, self.file, self.batch = world, file, batch
        self.known: dict[str, Tensor] = load_file(file) if file and file.exists() else {}

    def __call__(self, asks: Sequence[Ask]) -> Pictures:
        missing = [ask for ask in dict.fromkeys(asks) if self._key(ask) not in self.known]
        if missing:
            drawn = draw_asks(self.world, self.world.pipe, missing, self.batch)
            self.known |= {self._key(ask): p for ask, p in zip(missing, drawn, strict=True)}
            if self.file:
                write_tensors(self.file, self.known)
        return torch.stack([self.known[self._key(ask)] for ask in asks])

    def _key(self, ask: Ask) -> str:
        return json.dumps([ask.text, ask.seed, self.world.steps, self.world.guidance])
