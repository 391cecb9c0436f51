"""Tiny pipelines with random weights, as diffusers would load them from a folder."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIDE = 32  # pixels of the tiny images; latents are 16 x 16


def tokenizer(length: int = 8) -> Any:
    """A byte-level CLIP tokenizer that knows letters only, from files like the library's."""
    from transformers import CLIPTokenizer

    letters = [chr(i) for i in range(97, 123)]
    names = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>", "ab</w>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({name: i for i, name in enumerate(names)}))
        merges.write_text("#version: 0.2\na b</w>\n")
        return CLIPTokenizer(str(vocab), str(merges), model_max_length=length)


def clip_text(width: int = 8, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=60,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=width,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5_text(width: int = 8) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=60, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=53
    )
    return T5EncoderModel(config).eval()


def vae(channels: int = 4, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=SIDE,
        **options,
    ).eval()


def unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    settings: dict[str, Any] = {
        "sample_size": SIDE // 2,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**settings | options).eval()


def ddim(**options: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **options,
    )


def sd(**options: Any) -> Any:
    """As Stable Diffusion 1."""
    from diffusers import StableDiffusionPipeline

    parts = {
        "vae": vae(),
        "text_encoder": clip_text(),
        "tokenizer": tokenizer(),
        "unet": unet(),
        "scheduler": ddim(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return StableDiffusionPipeline(**parts | options)


def sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    model = unet(
        cross_attention_dim=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=model,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    )


def pixart() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=SIDE // 2,
        patch_size=2,
        caption_channels=8,
        use_additional_conditions=False,
    )
    return PixArtAlphaPipeline(
        tokenizer=tokenizer(120),
        text_encoder=t5_text(),
        vae=vae(),
        transformer=model.eval(),
        scheduler=DPMSolverMultistepScheduler(),
    )


def dit() -> Any:
    from diffusers import DiTPipeline, DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=SIDE // 2,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    return DiTPipeline(transformer=model.eval(), vae=vae(), scheduler=ddim())


def sd3() -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    model = SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=model.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06),
        text_encoder=clip_text(projected=True),
        tokenizer=tokenizer(),
        text_encoder_2=clip_text(projected=True),
        tokenizer_2=tokenizer(),
        text_encoder_3=t5_text(16),
        tokenizer_3=tokenizer(16),
    )


def flux(guidance_embeds: bool = True) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return FluxPipeline(
        transformer=model.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1),
        text_encoder=clip_text(),
        tokenizer=tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=tokenizer(16),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": sd,
    "sdxl": sdxl,
    "pixart": pixart,
    "dit": dit,
    "sd3": sd3,
    "flux": flux,
}


def pipeline(name: str) -> Any:
    """The same weights each time, and no progress bar of the user's own calls."""
    torch.manual_seed(0)
    pipe = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
