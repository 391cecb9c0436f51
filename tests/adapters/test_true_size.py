"""Models at their true size, with random weights: widths, tokens and prefixes as documented."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.adapters import clip_text
from vision_sae.adapters.transformers_models import wrap
from vision_sae.extract import activations
from vision_sae.model.adapter import Adapter, load_adapter
from vision_sae.model.hooks import inference
from vision_sae.model.probing import probe_site
from vision_sae.model.sites import Site

pytestmark = pytest.mark.slow


def images(side: int, b: int = 2) -> Tensor:
    return torch.randn(b, 3, side, side, generator=torch.Generator().manual_seed(0))


def tokens(name: str, width: int, side: int, prefix: int, registers: int = 0) -> Site:
    count = prefix + side * side
    return Site(name, "tokens", width, count, prefix, (side, side), registers=registers)


@pytest.mark.parametrize(
    ("model", "side", "site"),
    [
        ("open_clip:ViT-B-32/random", 224, tokens("visual.transformer.resblocks.11", 768, 7, 1)),
        ("open_clip:ViT-B-16-SigLIP/random", 224, tokens("visual.trunk.blocks.11", 768, 14, 0)),
        ("timm:vit_small_patch14_dinov2/random", 518, tokens("blocks.11", 384, 37, 1)),
        (
            "timm:vit_small_patch14_reg4_dinov2/random?img_size=224",
            224,
            tokens("blocks.11", 384, 16, 5, registers=4),
        ),
        (
            "timm:vit_medium_patch16_reg4_gap_256/random",
            256,
            tokens("blocks.11", 512, 16, 4, registers=4),
        ),
        ("timm:vit_medium_patch16_gap_256/random", 256, tokens("blocks.11", 512, 16, 0)),
        ("timm:vit_base_patch16_siglip_224/random", 224, tokens("blocks.11", 768, 14, 0)),
        ("timm:deit_tiny_distilled_patch16_224/random", 224, tokens("blocks.11", 192, 14, 2)),
        ("timm:cait_xxs24_224/random", 224, tokens("blocks.23", 192, 14, 0)),
        ("timm:resnet50/random", 224, Site("layer3", "map", 1024, 196, 0, (14, 14))),
        ("timm:convnext_tiny/random", 224, Site("stages.2", "map", 384, 196, 0, (14, 14))),
        (
            "timm:swin_tiny_patch4_window7_224/random",
            224,
            Site("layers.2", "map", 384, 196, 0, (14, 14), width_axis=3),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sites_are_as_documented(model: str, side: int, site: Site) -> None:
    pytest.importorskip(model.partition(":")[0])
    adapter = load_adapter(model)
    assert probe_site(adapter, site.name, images(side, 1)) == site
    assert activations(adapter, images(side, 1), site).shape == (1, site.tokens, site.width)


def test_clips_text_tower_has_77_tokens() -> None:
    pytest.importorskip("open_clip")
    adapter = clip_text.from_name("ViT-B-32/random")
    site = probe_site(adapter, "transformer.resblocks.9", adapter.prepare(["a red heart"]))
    assert (site.tokens, site.width, site.prefix) == (77, 512, 0)
    assert adapter.prepare(["", "a " * 200]).shape == (2, 77)


@pytest.mark.parametrize(
    ("name", "registers"), [("vit_small_patch14_dinov2", 0), ("vit_small_patch14_reg4_dinov2", 4)]
)
def test_timm_says_the_same_of_its_tokens(name: str, registers: int) -> None:
    pytest.importorskip("timm")
    adapter = load_adapter(f"timm:{name}/random?img_size=224")
    found = _last(adapter, "blocks.11", 224)
    model: Any = adapter.model
    with inference(model):
        [(patches, prefix)] = model.get_intermediate_layers(
            images(224), n=1, return_prefix_tokens=True, norm=False
        )
    assert prefix.shape == (2, 1 + registers, 384) and adapter.registers == registers
    assert torch.equal(found, torch.cat([prefix, patches], 1))
    assert torch.equal(found[:, 0], prefix[:, 0])


@pytest.mark.parametrize("registers", [0, 4])
def test_transformers_says_the_same_of_its_tokens(registers: int) -> None:
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=12, patch_size=14, image_size=224
    )
    processor = transformers.BitImageProcessor(size={"shortest_edge": 224})
    model = getattr(transformers, f"{kind}Model")(config)
    adapter = wrap(model, processor, name="dinov2-small")
    found = _last(adapter, "encoder.layer.11", 224)
    with inference(model):
        said = model(images(224), output_hidden_states=True)
    assert (adapter.prefix_tokens, adapter.registers) == (1 + registers, registers)
    assert found.shape == (2, 257 + registers, 384)
    assert torch.equal(found, said.hidden_states[12])
    assert torch.equal(model.layernorm(found)[:, 0].detach(), said.pooler_output)


def _last(adapter: Adapter, site: str, side: int) -> Tensor:
    found: Tensor = activations(adapter, images(side), probe_site(adapter, site, images(side, 1)))
    return found.clone()
