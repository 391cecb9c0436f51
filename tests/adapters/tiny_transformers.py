"""Tiny random models of transformers, their processors and a tokenizer of ten words."""

from pathlib import Path
from typing import Any

import pytest
import torch

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 16,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 10,
    "bos_token_id": 3,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "projection_dim": 12,
}
T5 = {"vocab_size": 16, "d_model": 24, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BOTH = {"text_config": TEXT, "vision_config": VISION}

# the class of the model, the class of its config, settings
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "CLIP vision": ("CLIPVisionModel", "CLIPVisionConfig", VISION),
    "CLIP projected": (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        VISION | {"projection_dim": 12},
    ),
    "CLIP": ("CLIPModel", "CLIPConfig", BOTH | {"projection_dim": 12}),
    "SigLIP vision": ("SiglipVisionModel", "SiglipVisionConfig", VISION),
    "SigLIP": (
        "SiglipModel",
        "SiglipConfig",
        BOTH | {"text_config": TEXT | {"projection_size": 32}},
    ),
    "SigLIP 2": (
        "Siglip2VisionModel",
        "Siglip2VisionConfig",
        {k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 16},
    ),
    "DINOv2": ("Dinov2Model", "Dinov2Config", VISION),
    "DINOv2 registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", VISION),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", VISION | {"num_register_tokens": 4}),
    "ViT": ("ViTModel", "ViTConfig", VISION),
    "DeiT": ("DeiTModel", "DeiTConfig", VISION),
    "CLIP text": ("CLIPTextModel", "CLIPTextConfig", TEXT),
    "CLIP text projected": ("CLIPTextModelWithProjection", "CLIPTextConfig", TEXT),
    "T5": ("T5EncoderModel", "T5Config", T5),
    "whole T5": ("T5ForConditionalGeneration", "T5Config", T5),
}


def model(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    name, config, settings = KINDS[kind]
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()


def processor(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    if kind == "SigLIP 2":
        return transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    crop = {"height": 32, "width": 32}
    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop)


def tokenizer() -> Any:
    transformers, tokenizers = (
        pytest.importorskip(library) for library in ("transformers", "tokenizers")
    )
    words = ["<pad>", "<unk>", "</s>", "<s>", "red", "blue", "dog", "heart", "a", "photo"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
    )


def save(kind: str, folder: Path) -> str:
    """The model with what it needs beside it, as a hub's folder."""
    model(kind).save_pretrained(folder)
    processor(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)
