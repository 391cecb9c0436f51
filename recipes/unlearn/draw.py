"""Pictures of prompts and seeds: noise is of each prompt's seed, whatever else is in the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vision_sae.errors import DataError

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


def unit(pictures: Pictures) -> Float[Tensor, "n 3 h w"]:
    """Bytes as numbers in 0..1."""
    return pictures.float() / 255
