"""open_clip's kinds of models: tiny ones of each kind, and every one that it lists, unweighed."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vision_sae.adapters import clip, clip_text
from vision_sae.adapters.toy import to_input
from vision_sae.errors import ConfigError, DataError, MissingExtra, UnknownName
from vision_sae.extract import activations
from vision_sae.model.hooks import capture, inference
from vision_sae.model.probing import probe_site
from vision_sae.model.sites import Site, site_from_shapes

open_clip = pytest.importorskip("open_clip")
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
COCA = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


class Kind(NamedTuple):
    config: dict[str, Any]
    site: Site  # of the images
    text_block: str = "transformer.resblocks.0"


def trunk(name: str, size: int, pool: str = "") -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": pool, "image_size": size}


def tokens(name: str, width: int, side: int, prefix: int) -> Site:
    return Site(name, "tokens", width, prefix + side * side, prefix, (side, side))


def feature_map(name: str, width: int, side: int) -> Site:
    return Site(name, "map", width, side * side, 0, (side, side))


OWN = "text.transformer.resblocks.0"
KINDS = {
    "ViT": Kind({"vision_cfg": VIT}, tokens("visual.transformer.resblocks.1", 32, 4, 1)),
    "ViT with a final pool": Kind(
        {"vision_cfg": VIT | {"pool_type": "avg", "final_ln_after_pool": True}},
        tokens("visual.transformer.resblocks.1", 32, 4, 1),
    ),
    "ResNet": Kind(
        {"vision_cfg": VIT | {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}},
        feature_map("visual.layer3", 256, 4),
    ),
    "ConvNeXt": Kind(
        {"vision_cfg": trunk("test_convnext", 160)}, feature_map("visual.trunk.stages.1", 32, 20)
    ),
    "timm ViT": Kind(
        {"vision_cfg": trunk("test_vit", 160, "token")}, tokens("visual.trunk.blocks.2", 64, 10, 1)
    ),
    "CoCa": Kind(
        {
            "vision_cfg": VIT
            | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
            "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
            "multimodal_cfg": COCA,
            "custom_text": True,
        },
        tokens("visual.transformer.resblocks.1", 32, 4, 1),
        OWN,
    ),
}
every_kind = pytest.mark.parametrize("name", KINDS)


def saved(folder: Path, kind: Kind) -> str:
    from safetensors.torch import save_file

    model_config = {"embed_dim": 16, "text_cfg": TEXT} | kind.config
    config = {"model_cfg": model_config, "preprocess_cfg": {"size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "open_clip_model.safetensors").touch()
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def pictures(n: int) -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), (60 * i, 99, 7)) for i in range(n)]


@every_kind
def test_each_kind_gives_its_sites_and_its_embedding(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    adapter = clip.from_name(saved(tmp_path, kind))
    example = adapter.prepare(pictures(1))
    assert probe_site(adapter, kind.site.name, example) == kind.site
    batch = adapter.prepare(pictures(3))
    projected = activations(adapter, batch, probe_site(adapter, "visual", example))[:, 0]
    with inference(adapter.model):
        assert torch.equal(projected, adapter.model.encode_image(batch, normalize=False))  # type: ignore[operator]


@every_kind
def test_each_kind_reads_texts(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    adapter = clip_text.from_name(saved(tmp_path, kind))
    length = 9 if name == "CoCa" else 8
    site = probe_site(adapter, kind.text_block, adapter.prepare(["a"]))
    assert (site.layout, site.tokens, site.width, site.prefix) == ("tokens", length, 16, 0)
    batch = adapter.prepare(["red heart", "", "a long long long text of more than eight tokens"])
    assert activations(adapter, batch, site).shape == (3, length, 16)
    assert adapter.name == f"open_clip-text:local-dir:{tmp_path}" and adapter.reads == "texts"


def test_the_class_token_after_ln_post_is_the_embedding_before_projection(tmp_path: Path) -> None:
    adapter = clip.from_name(saved(tmp_path, KINDS["ViT"]))
    batch, proj = adapter.prepare(pictures(2)), adapter.model.get_parameter("visual.proj")
    with inference(adapter.model), capture(adapter.model, ["visual.ln_post", "visual"]) as acts:
        adapter.run(batch)
    torch.testing.assert_close(acts["visual.ln_post"][:, 0] @ proj.detach(), acts["visual"])


def test_texts_are_pooled_from_ln_final(tmp_path: Path) -> None:
    adapter = clip_text.from_name(saved(tmp_path, KINDS["ViT"]))
    batch = adapter.prepare(["red heart", "dog"])
    with inference(adapter.model), capture(adapter.model, ["ln_final"]) as acts:
        embedded = adapter.run(batch)
    pooled = acts["ln_final"][torch.arange(2), batch.argmax(-1)]
    proj = adapter.model.get_parameter("text_projection").detach()
    torch.testing.assert_close(pooled @ proj, embedded)


# ---- refusals


def test_the_text_tower_has_the_image_towers_names() -> None:
    with pytest.raises(UnknownName, match="no open_clip model 'ViT-B32'; did you mean .*ViT-B-32"):
        clip_text.from_name("ViT-B32/random")
    with pytest.raises(ConfigError, match="open_clip-text:ViT-B-32 needs weights after a slash"):
        clip_text.from_name("ViT-B-32")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, and nothing that was fetched from it before."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for library in ("huggingface_hub.constants", "transformers.utils.hub"):
        module = pytest.importorskip(library)
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("offline")
def test_a_tokenizer_of_the_hub_is_missed_at_the_first_text_only() -> None:
    tokenize = clip.on_first_use(lambda: clip._tokenizer("ViT-B-16-SigLIP"))
    with pytest.raises(DataError, match="tokenizer of ViT-B-16-SigLIP comes from the Hugging Face"):
        tokenize(["red"])


@pytest.mark.usefixtures("offline")
def test_a_model_of_the_hub_needs_the_hub() -> None:
    with pytest.raises(DataError, match="could not load open_clip:hf-hub:nobody/nothing"):
        clip.from_name("hf-hub:nobody/nothing")


def test_a_tokenizer_of_the_hub_needs_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"'vision-sae\[transformers\]'"):
        clip._tokenizer("ViT-B-16-SigLIP")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    saved(tmp_path, KINDS["ViT"])
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(
        DataError, match="open_clip could not load open_clip:local-dir:.*state_dict"
    ):
        clip.from_name(f"local-dir:{tmp_path}")


# ---- all that open_clip lists, on the meta device: shapes without weights


HUB_TEXT = [
    name
    for name in open_clip.list_models()
    if open_clip.get_model_config(name)["text_cfg"].get("hf_model_name")
]
BLOCKS = ("visual.transformer.resblocks.1", "visual.trunk.blocks.1", "visual.trunk.stages.1")
MAPS = ("visual.layer2", "visual.trunk.layers.1")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in open_clip.list_models() if n not in HUB_TEXT])
def test_every_listed_model_has_sites(name: str) -> None:
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta").eval()
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    adapter = clip.ClipAdapter(model, to_input, lambda texts: Tensor(), name=name)
    paths = dict(model.named_modules())
    block = next(path for path in BLOCKS + MAPS if path in paths)
    sites = unweighed(adapter, [block, "visual"], torch.zeros(2, 3, size, size, device="meta"))
    assert sites["visual"].layout == "vector" and sites[block].grid is not None
    texts = clip_text.wrap(model, lambda texts: Tensor(), name=name)
    config = open_clip.get_model_config(name)["text_cfg"]
    block = next(p for p in (OWN, "transformer.resblocks.0") if p in paths)
    length = config.get("context_length", 77)
    tokens = torch.zeros(2, length, dtype=torch.long, device="meta")
    site = unweighed(texts, [block], tokens)[block]
    assert site.tokens == length + bool(config.get("embed_cls")) and site.width == config["width"]


def unweighed(adapter: Any, names: list[str], batch: Tensor) -> dict[str, Site]:
    """What `probe_sites` finds, in a quarter of its time: the model is on the meta device."""
    shapes = []
    for some in (batch, batch[:1].expand(3, *batch.shape[1:])):
        with inference(adapter.model), capture(adapter.model, names, stop_early=True) as acts:
            adapter.run(some)
        shapes.append({name: tuple(acts[name].shape) for name in names})
    prefix = adapter.prefix_tokens
    return {n: site_from_shapes(n, shapes[0][n], shapes[1][n], prefix) for n in names}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", HUB_TEXT)
def test_a_text_tower_of_the_hub_needs_the_hub(name: str) -> None:
    """And says so before an image tower of up to 2 GB is built."""
    with pytest.raises(DataError, match=f"could not load open_clip:{name}/random: "):
        clip.from_name(f"{name}/random")


@pytest.mark.slow
@pytest.mark.parametrize("name", HUB_TEXT)
def test_their_image_towers_are_those_of_the_others(name: str) -> None:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        visual = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
    model = nn.Module()
    model.visual, model.encode_image = visual, visual  # type: ignore[assignment]
    adapter = clip.ClipAdapter(model.eval(), to_input, lambda texts: Tensor(), name=name)
    block = next(path for path in BLOCKS + MAPS if path in dict(model.named_modules()))
    size = config["vision_cfg"]["image_size"]
    sites = unweighed(adapter, [block, "visual"], torch.zeros(2, 3, size, size, device="meta"))
    assert sites["visual"].width == config["embed_dim"] and sites[block].grid is not None
