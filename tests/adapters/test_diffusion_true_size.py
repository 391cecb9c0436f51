"""The published shapes: U-Nets and transformers at their true sizes, with random or no weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from vision_sae.adapters.diffusion_inputs import denoise
from vision_sae.model.hooks import capture, inference

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}


def sd15() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    ).eval()


@contextmanager
def without_weights() -> Iterator[None]:
    with torch.device("meta"):
        yield


def shapes(model: Any, sites: list[str], latents: Tensor, **given: Tensor) -> list[tuple[int, ...]]:
    times = torch.full((len(latents),), 500, device=latents.device)
    with inference(model), capture(model, sites) as captured:
        denoise(model, latents, times, given)
    return [tuple(captured[site].shape) for site in sites]


SD15_SITES = ["up_blocks.1.attentions.1", "up_blocks.1.attentions.2", "mid_block"]
SD15_SHAPES = [(1, 1280, 16, 16), (1, 1280, 16, 16), (1, 1280, 8, 8)]


def test_stable_diffusion_15_has_the_sites_of_saeuron() -> None:
    with without_weights():
        found = shapes(
            sd15(),
            SD15_SITES,
            torch.zeros(1, 4, 64, 64),
            encoder_hidden_states=torch.zeros(1, 77, 768),
        )
    assert found == SD15_SHAPES


def test_sdxl_has_the_sites_of_sdxl_unbox() -> None:
    """At 512 px, as sdxl-turbo runs: 16 x 16 positions."""
    from diffusers import UNet2DConditionModel

    sites = [
        "down_blocks.2.attentions.1:update",
        "mid_block.attentions.0:update",
        "up_blocks.0.attentions.0:update",
        "up_blocks.0.attentions.1:update",
    ]
    with without_weights():
        found = shapes(
            UNet2DConditionModel(**SDXL).eval(),
            sites,
            torch.zeros(1, 4, 64, 64),
            encoder_hidden_states=torch.zeros(1, 77, 2048),
            text_embeds=torch.zeros(1, 1280),
            time_ids=torch.zeros(1, 6),
        )
    assert found == [(1, 1280, 16, 16)] * 4


def test_dit_xl_2_has_256_tokens() -> None:
    from diffusers import DiTTransformer2DModel

    with without_weights():
        model = DiTTransformer2DModel(sample_size=32, num_embeds_ada_norm=1000, out_channels=8)
        labels = torch.tensor([1000])
        found = shapes(
            model.eval(),
            ["transformer_blocks.14"],
            torch.zeros(1, 4, 32, 32),
            class_labels=labels,
        )
    assert found == [(1, 256, 1152)]


def test_flux_has_image_tokens_in_the_second_place() -> None:
    """Widths of Flux, two blocks of each kind; 512 px are 1024 tokens."""
    from diffusers import FluxTransformer2DModel

    sites = ["transformer_blocks.1[1]", "single_transformer_blocks.1[1]", "transformer_blocks.1"]
    with without_weights():
        model = FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)
        found = shapes(
            model.eval(),
            sites,
            torch.zeros(1, 16, 64, 64),
            encoder_hidden_states=torch.zeros(1, 512, 4096),
            pooled_projections=torch.zeros(1, 768),
        )
    assert found == [(1, 1024, 3072), (1, 1024, 3072), (1, 512, 3072)]


@pytest.mark.slow
def test_stable_diffusion_15_runs_on_numbers() -> None:
    model = sd15()
    sites = SD15_SITES[:2]
    latents, states = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
    with inference(model), capture(model, sites, stop_early=True) as captured:
        denoise(model, latents, torch.tensor([500]), {"encoder_hidden_states": states})
    assert [tuple(captured[site].shape) for site in sites] == SD15_SHAPES[:2]
    assert all(captured[site].isfinite().all() for site in sites)
