"""The adapters of the contract, each with some of its sites and what these must be."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers_models
import pytest
import tiny_transformers
from torch import Tensor, nn

from vision_sae.adapters import clip_text, transformers_models, transformers_text
from vision_sae.adapters.base import ModuleAdapter
from vision_sae.adapters.toy import to_input
from vision_sae.model.adapter import Adapter, load_adapter
from vision_sae.model.sites import Site


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, stride=4)
        self.norm = nn.BatchNorm2d(5)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(images)))
        return self.head(self.pool(x).flatten(1))  # type: ignore[no-any-return]


class Sequence(nn.Module):
    """Tokens as [t b d] through attention, whose module gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.attend = nn.MultiheadAttention(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.embed(images).flatten(2).permute(2, 0, 1))
        return x + self.attend(x, x, x)[0]  # type: ignore[no-any-return]


TINY_CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    },
    "preprocess_cfg": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
}
# attention with a module of its own for the output projection
CUSTOM_CLIP = {
    "model_cfg": TINY_CLIP["model_cfg"]
    | {"vision_cfg": TINY_CLIP["model_cfg"]["vision_cfg"] | {"block_type": "custom"}},
    "preprocess_cfg": TINY_CLIP["preprocess_cfg"],
}


def toy(folder: Path) -> Adapter:
    return load_adapter("toy")


def conv(folder: Path) -> Adapter:
    return ModuleAdapter(Conv().eval(), to_input, name="conv")


def sequence(folder: Path) -> Adapter:
    return ModuleAdapter(Sequence().eval(), to_input, name="sequence")


def timm(name: str) -> Callable[[Path], Adapter]:
    def make(folder: Path) -> Adapter:
        pytest.importorskip("timm")
        return load_adapter(f"timm:{name}/random")

    return make


def registers(folder: Path) -> Adapter:
    """A timm ViT with a class token and two registers behind it."""
    pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    from vision_sae.adapters.timm_models import wrap

    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5, reg_tokens=2
    )
    return wrap(model, name="mine")


def saved_clip(folder: Path, config: dict[str, Any]) -> str:
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = open_clip.CLIP(**config["model_cfg"]).state_dict()
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def tiny_clip(folder: Path) -> Adapter:
    return load_adapter(f"open_clip:{saved_clip(folder, TINY_CLIP)}")


def custom_clip(folder: Path) -> Adapter:
    return load_adapter(f"open_clip:{saved_clip(folder, CUSTOM_CLIP)}")


def tiny_clip_text(folder: Path) -> Adapter:
    return clip_text.from_name(saved_clip(folder, TINY_CLIP))


def images_of(kind: str) -> Callable[[Path], Adapter]:
    return lambda folder: transformers_models.from_name(tiny_transformers.save(kind, folder))


def texts_of(kind: str, options: str = "") -> Callable[[Path], Adapter]:
    return lambda folder: transformers_text.from_name(
        tiny_transformers.save(kind, folder) + options
    )


def drawn(kind: str, **settings: Any) -> Callable[[Path], Adapter]:
    """The denoiser of a tiny pipeline along its own sampling."""

    def make(folder: Path) -> Adapter:
        from vision_sae.adapters.diffusion import TrajectoryAdapter

        return TrajectoryAdapter(pipeline(kind), steps=3, guidance=3.0, **settings)

    return make


def noised(kind: str) -> Callable[[Path], Adapter]:
    """The same on images, noised to two timesteps."""

    def make(folder: Path) -> Adapter:
        from vision_sae.adapters.diffusion_noised import NoisedAdapter

        side = diffusers_models.SIDE
        return NoisedAdapter(pipeline(kind), timesteps=(25, 200), height=side, width=side)

    return make


def pipeline(kind: str) -> Any:
    for library in ("diffusers", "transformers"):
        pytest.importorskip(library)
    return diffusers_models.pipeline(kind)


def named(name: str, library: str) -> Callable[[Path], Adapter]:
    def make(folder: Path) -> Adapter:
        pytest.importorskip(library)
        return load_adapter(name)

    return make


def tokens(
    name: str, width: int, side: int, prefix: int = 0, axis: int = 0, registers: int = 0
) -> Site:
    count = prefix + side * side
    return Site(name, "tokens", width, count, prefix, (side, side), axis, registers=registers)


def feature_map(name: str, width: int, side: int) -> Site:
    return Site(name, "map", width, side * side, 0, (side, side))


def last(name: str, width: int, side: int) -> Site:
    """A map [b h w d]."""
    return replace(feature_map(name, width, side), width_axis=3)


def words(name: str, width: int, count: int) -> Site:
    return Site(name, "tokens", width, count, 0, None)


def block(
    path: str,
    attention: str,
    width: int,
    side: int,
    prefix: int = 0,
    heads: int = 0,
    registers: int = 0,
) -> list[Site]:
    """What a transformer block gives in every way that it can be read."""
    kinds = {path: width, f"{path}:update": width, f"{path}:input": width, attention: width}
    kinds[f"{attention}:heads"] = heads or width
    return [tokens(n, wide, side, prefix, registers=registers) for n, wide in kinds.items()]


def sentence(path: str, attention: str, width: int, count: int, heads: int = 0) -> list[Site]:
    return [
        words(site.name, site.width, count)
        for site in block(path, attention, width, 0, heads=heads)
    ]


def vector(name: str, width: int) -> Site:
    return Site(name, "vector", width, 1, 0, None)


@dataclass(frozen=True)
class Case:
    make: Callable[[Path], Adapter]
    sites: list[Site]
    embeds: bool = False  # both texts and images


CASES = {
    "toy": Case(
        toy,
        [tokens("blocks.1", 24, 4, 1), vector("head", 12), feature_map("embed", 24, 4)],
        embeds=True,
    ),
    "conv": Case(
        conv,
        [
            feature_map("norm", 5, 4),
            feature_map("norm:update", 5, 4),
            feature_map("pool", 5, 1),
            feature_map("pool:input", 5, 4),
            vector("head", 2),
        ],
    ),
    "sequence": Case(
        sequence,
        [
            tokens("norm", 8, 4, axis=1),
            tokens("attend", 8, 4, axis=1),
            tokens("attend:heads", 8, 4, axis=1),
        ],
    ),
    "timm ViT": Case(
        timm("test_vit"),
        [
            *block("blocks.2", "blocks.2.attn", 64, 10, 1),
            last("patch_embed", 64, 10),
            vector("head", 1000),
        ],
    ),
    "timm ViT without a class token": Case(
        timm("test_vit_relpos"), block("blocks.2", "blocks.2.attn", 96, 10)
    ),
    "timm ViT with a register and no class token": Case(
        timm("test_vit3"), block("blocks.2", "blocks.2.attn", 96, 10, 1, registers=1)
    ),
    "timm ViT with both": Case(
        registers, block("blocks.1", "blocks.1.attn", 24, 4, 3, registers=2)
    ),
    "timm ResNet": Case(
        timm("test_resnet"),
        [
            feature_map("bn1", 32, 80),
            feature_map("layer3", 192, 10),
            feature_map("bn1:update", 32, 80),
        ],
    ),
    "timm ConvNeXt": Case(
        timm("test_convnext"),
        [feature_map("stages.1", 32, 20), feature_map("stages.1.blocks.1:update", 32, 20)],
    ),
    "tiny CLIP": Case(
        tiny_clip,
        [
            *block(
                "visual.transformer.resblocks.0", "visual.transformer.resblocks.0.attn", 32, 4, 1
            ),
            tokens("visual.transformer.resblocks.0.mlp", 32, 4, 1),
            tokens("visual.transformer.resblocks.0.mlp.gelu", 128, 4, 1),
            tokens("visual.ln_post", 32, 4, 1),
            vector("visual", 16),
        ],
        embeds=True,
    ),
    "CLIP of custom blocks": Case(
        custom_clip,
        block("visual.transformer.resblocks.1", "visual.transformer.resblocks.1.attn", 32, 4, 1),
        embeds=True,
    ),
    "tiny CLIP's texts": Case(
        tiny_clip_text,
        [
            *sentence("transformer.resblocks.0", "transformer.resblocks.0.attn", 16, 8),
            words("ln_final", 16, 8),
        ],
    ),
    "transformers CLIP": Case(
        images_of("CLIP"),
        block("vision_model.encoder.layers.1", "vision_model.encoder.layers.1.self_attn", 32, 4, 1),
        embeds=True,
    ),
    "transformers SigLIP": Case(
        images_of("SigLIP vision"),
        [*block("encoder.layers.1", "encoder.layers.1.self_attn", 32, 4), vector("head", 32)],
    ),
    "transformers SigLIP 2": Case(
        images_of("SigLIP 2"), block("encoder.layers.1", "encoder.layers.1.self_attn", 32, 4)
    ),
    "transformers DINOv2": Case(
        images_of("DINOv2 registers"),
        block("encoder.layer.1", "encoder.layer.1.attention", 32, 4, 5, registers=4),
    ),
    "transformers DINOv3": Case(
        images_of("DINOv3"),
        block("model.layer.1", "model.layer.1.attention", 32, 4, 5, registers=4),
    ),
    "transformers ViT": Case(images_of("ViT"), block("layers.1", "layers.1.attention", 32, 4, 1)),
    "transformers CLIP's texts": Case(
        texts_of("CLIP text"), sentence("encoder.layers.1", "encoder.layers.1.self_attn", 24, 10)
    ),
    "transformers T5": Case(
        texts_of("T5", "?length=12"),
        sentence("encoder.block.1", "encoder.block.1.layer.0.SelfAttention", 24, 12, heads=32),
    ),
}
DIFFUSERS = {
    "sd": [
        feature_map("up_blocks.0.attentions.1", 16, 8),
        feature_map("mid_block.attentions.0:update", 16, 8),
    ],
    "sdxl": [feature_map("up_blocks.0.attentions.1", 16, 8)],
    "pixart": [
        *block("transformer_blocks.1", "transformer_blocks.1.attn1", 16, 8),
    ],
    "sd3": [
        tokens("transformer_blocks.0[1]", 16, 8),
        words("transformer_blocks.0", 16, 8 + 256),  # the text's: of two CLIPs, of T5
    ],
    "flux": [
        tokens("transformer_blocks.0[1]", 32, 8),
        tokens("single_transformer_blocks.0[1]", 32, 8),
    ],
}
SIZES = {"flux": {"height": 32, "width": 32}}  # its pipeline knows no size of its own
CASES |= {
    f"{kind} drawn": Case(drawn(kind, **SIZES.get(kind, {})), sites)
    for kind, sites in DIFFUSERS.items()
}
CASES |= {f"{kind} noised": Case(noised(kind), sites) for kind, sites in DIFFUSERS.items()}
CASES |= {
    "both halves of sd": Case(drawn("sd", half="both", at=(0, 2)), DIFFUSERS["sd"]),
    "no text of sd": Case(drawn("sd", half="uncond", every=2), DIFFUSERS["sd"][:1]),
    "dit noised": Case(
        noised("dit"), block("transformer_blocks.1", "transformer_blocks.1.attn1", 16, 8)
    ),
    "emoji-clip": Case(
        named("emoji-clip", "open_clip"),
        [
            *block(
                "visual.transformer.resblocks.4", "visual.transformer.resblocks.4.attn", 192, 8, 1
            ),
            vector("visual", 192),
        ],
        embeds=True,
    ),
    "emoji-diffusion": Case(
        named("emoji-diffusion?steps=2", "diffusers"),
        [feature_map("up_blocks.0.attentions.1:update", 128, 4)],
    ),
}
