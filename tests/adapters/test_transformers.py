"""transformers' image models: their tokens told apart, folders, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_transformers as tiny
import torch
from PIL import Image

from vision_sae.adapters.transformers_models import TransformersClipAdapter, from_name, wrap
from vision_sae.errors import ConfigError, DataError, MissingExtra
from vision_sae.extract import activations
from vision_sae.model.adapter import TextImageAdapter
from vision_sae.model.hooks import capture, inference
from vision_sae.model.probing import probe_site
from vision_sae.model.sites import Site

pytest.importorskip("transformers")
# prefix tokens, and the path of the second block
FAMILIES = {
    "CLIP vision": (1, "encoder.layers.1"),
    "CLIP projected": (1, "vision_model.encoder.layers.1"),
    "CLIP": (1, "vision_model.encoder.layers.1"),
    "SigLIP vision": (0, "encoder.layers.1"),
    "SigLIP": (0, "vision_model.encoder.layers.1"),
    "SigLIP 2": (0, "encoder.layers.1"),
    "DINOv2": (1, "encoder.layer.1"),
    "DINOv2 registers": (5, "encoder.layer.1"),
    "DINOv3": (5, "model.layer.1"),
    "ViT": (1, "layers.1"),
    "DeiT": (2, "layers.1"),
}


def pictures(n: int) -> list[Image.Image]:
    noise = torch.randint(0, 256, (n, 20, 34, 3), generator=torch.Generator().manual_seed(0))
    return [Image.fromarray(image.to(torch.uint8).numpy()) for image in noise]


def block(adapter: Any, path: str) -> str:
    """The path in the installed version: some lie a level deeper before version 5."""
    names = [name for name, _ in adapter.model.named_modules()]
    return next(name for name in names if name == path or name.endswith(f".{path}"))


@pytest.mark.parametrize("kind", FAMILIES)
def test_patches_are_told_from_the_tokens_before_them(kind: str, tmp_path: Path) -> None:
    adapter = from_name(tiny.save(kind, tmp_path))
    prefix, path = FAMILIES[kind]
    site = block(adapter, path)
    batch = adapter.prepare(pictures(2))
    example = adapter.prepare(pictures(1))
    registers = getattr(adapter.model.config, "num_register_tokens", 0)
    assert probe_site(adapter, site, example) == Site(
        site, "tokens", 32, prefix + 16, prefix, (4, 4), registers=registers
    )
    found = probe_site(adapter, site, example)
    hidden = _hidden_states(adapter, batch)
    assert torch.equal(activations(adapter, batch, found), hidden[-1])
    assert adapter.name == f"transformers:{tmp_path}" and adapter.reads == "images"


def _hidden_states(adapter: Any, batch: Any) -> Any:
    inputs = batch if isinstance(batch, dict) else {"pixel_values": batch}
    tower = getattr(adapter.model, "vision_model", adapter.model)
    with torch.inference_mode():
        return tower(**inputs, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("kind", ["DINOv2 registers", "DINOv3", "CLIP vision", "SigLIP vision"])
def test_the_prefix_is_what_the_config_says(kind: str) -> None:
    model = tiny.model(kind)
    registers = getattr(model.config, "num_register_tokens", 0)
    count = 0 if "SigLIP" in kind else 1 + registers
    adapter = wrap(model, tiny.processor(kind), name="mine")
    assert (adapter.prefix_tokens, adapter.registers) == (count, registers)


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP"])
def test_whole_models_embed_both_as_the_library_does(kind: str, tmp_path: Path) -> None:
    adapter = from_name(tiny.save(kind, tmp_path))
    assert isinstance(adapter, TransformersClipAdapter) and isinstance(adapter, TextImageAdapter)
    texts = ["a red heart", "blue"]
    batch = adapter.prepare(pictures(3))
    tokens = tiny.tokenizer()(texts, padding="max_length", max_length=10, return_tensors="pt")
    with inference(adapter.model):
        said: Any = adapter.model(input_ids=tokens["input_ids"], pixel_values=batch)
    torch.testing.assert_close(adapter.embed_images(batch), said.image_embeds)
    torch.testing.assert_close(adapter.embed_texts(texts, batch=1), said.text_embeds)
    scale: Any = adapter.model.logit_scale
    assert adapter.logit_scale == float(scale.detach().exp())


def test_a_model_that_is_loaded_is_wrapped_with_its_processor() -> None:
    transformers = pytest.importorskip("transformers")
    both = transformers.CLIPProcessor(tiny.processor("CLIP"), tiny.tokenizer())
    adapter = wrap(tiny.model("CLIP"), both, name="mine")
    assert isinstance(adapter, TextImageAdapter) and adapter.name == "mine"
    assert adapter.embed_texts(["red"]).shape == (1, 12)
    with pytest.raises(ConfigError, match="CLIPModel embeds texts too: wrap it with its AutoProc"):
        wrap(tiny.model("CLIP"), tiny.processor("CLIP"), name="mine")


def test_the_projected_embedding_is_a_site(tmp_path: Path) -> None:
    adapter = from_name(tiny.save("CLIP projected", tmp_path))
    batch = adapter.prepare(pictures(2))
    site = probe_site(adapter, "visual_projection", adapter.prepare(pictures(1)))
    assert site == Site("visual_projection", "vector", 12, 1, 0, None)
    with inference(adapter.model):
        assert torch.equal(activations(adapter, batch, site)[:, 0], adapter.run(batch).image_embeds)


def test_images_of_any_shape_have_one_grid_in_siglip_2() -> None:
    adapter = wrap(tiny.model("SigLIP 2"), tiny.processor("SigLIP 2"), name="mine")
    wide, tall = (Image.new("RGB", size, (9, 80, 200)) for size in ((90, 10), (10, 60)))
    batch = adapter.prepare([wide, tall])
    assert batch["spatial_shapes"].tolist() == [[4, 4], [4, 4]]
    assert batch["pixel_attention_mask"].bool().all()


def test_a_pooler_without_weights_is_no_site(tmp_path: Path) -> None:
    """Checkpoints of classifiers hold none; transformers would make random ones up."""
    transformers = pytest.importorskip("transformers")
    transformers.ViTForImageClassification(transformers.ViTConfig(**tiny.VISION)).save_pretrained(
        tmp_path
    )
    tiny.processor("ViT").save_pretrained(tmp_path)
    adapter = from_name(str(tmp_path))
    assert "pooler" not in dict(adapter.model.named_modules())
    with capture(adapter.model, ["layernorm"]) as acts:
        adapter.run(adapter.prepare(pictures(1)))
    assert acts["layernorm"].shape == (1, 17, 32)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder, file = tiny.save("DINOv2", tmp_path), tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("layer.1.mlp.fc1.weight"))
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match="no weights for 1 tensors of Dinov2Model, as .*fc1.weight"):
        from_name(folder)


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    folder = tiny.save("ViT", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "kept")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"\(AutoModel\) could not load .*safetensors"):
        from_name(folder)


def test_code_beside_the_weights_does_not_run(tmp_path: Path) -> None:
    code = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": code}))
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(DataError, match=r"\(AutoConfig\) could not load .*"):
        from_name(str(tmp_path))


def test_what_is_no_image_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="T5EncoderModel reads input_ids, not images; transform"):
        wrap(tiny.model("T5"), None, name="mine")
    with pytest.raises(DataError, match=f"{tmp_path} holds no config.json"):
        from_name(str(tmp_path))
    tiny.model("ViT").save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"\(AutoImageProcessor\) could not load"):
        from_name(str(tmp_path))


def test_a_model_that_shuffles_its_patches_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**tiny.VISION))
    with pytest.raises(ConfigError, match="ViTMAEModel hides and shuffles patches at random"):
        wrap(model, tiny.processor("ViT"), name="mine")


def test_a_name_that_the_hub_does_not_give_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="could not load nobody/nothing: "):
        from_name("nobody/nothing")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"needs transformers, .*'vision-sae\[transformers\]'"):
        from_name("anything")
