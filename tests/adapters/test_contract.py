"""One contract for every adapter: ours, a user's own module, timm's and open_clip's models."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_transformers
import torch
from PIL import Image
from torch import Tensor, nn

from vision_sae.adapters import clip_text, transformers_models, transformers_text
from vision_sae.adapters.base import ModuleAdapter
from vision_sae.adapters.toy import to_input
from vision_sae.data.prompts import Prompt
from vision_sae.errors import DataError
from vision_sae.extract import activations
from vision_sae.model.adapter import Adapter, TextImageAdapter, fingerprint, load_adapter
from vision_sae.model.hooks import capture, edit, inference
from vision_sae.model.probing import probe_site
from vision_sae.model.sites import Site, from_tokens, select_tokens, to_tokens

# ---- the adapters, each with some sites and what these must be


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


def tokens(name: str, width: int, side: int, prefix: int = 0, axis: int = 0) -> Site:
    return Site(name, "tokens", width, prefix + side * side, prefix, (side, side), axis)


def feature_map(name: str, width: int, side: int) -> Site:
    return Site(name, "map", width, side * side, 0, (side, side))


def last(name: str, width: int, side: int) -> Site:
    """A map [b h w d]."""
    return replace(feature_map(name, width, side), width_axis=3)


def words(name: str, width: int, count: int) -> Site:
    return Site(name, "tokens", width, count, 0, None)


def block(
    path: str, attention: str, width: int, side: int, prefix: int = 0, heads: int = 0
) -> list[Site]:
    """What a transformer block gives in every way that it can be read."""
    kinds = {path: width, f"{path}:update": width, f"{path}:input": width, attention: width}
    kinds[f"{attention}:heads"] = heads or width
    return [tokens(name, wide, side, prefix) for name, wide in kinds.items()]


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
        block("encoder.layer.1", "encoder.layer.1.attention", 32, 4, 5),
    ),
    "transformers DINOv3": Case(
        images_of("DINOv3"), block("model.layer.1", "model.layer.1.attention", 32, 4, 5)
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
PAIRS = [
    pytest.param(name, site, id=f"{name}-{site.name}")
    for name, case in CASES.items()
    for site in case.sites
]
every_adapter = pytest.mark.parametrize("name", CASES)
every_site = pytest.mark.parametrize(("name", "site"), PAIRS)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Adapter]:
    made: dict[str, Adapter] = {}

    def get(name: str) -> Adapter:
        if name not in made:
            torch.manual_seed(0)
            made[name] = CASES[name].make(tmp_path_factory.mktemp("model"))
        return made[name]

    return get


Get = Callable[[str], Adapter]


def pictures(n: int) -> list[Image.Image]:
    noise = torch.randint(0, 256, (n, 12, 20, 3), generator=torch.Generator().manual_seed(3))
    return [Image.fromarray(image.to(torch.uint8).numpy()) for image in noise]


def items(adapter: Adapter, n: int) -> list[Any]:
    texts = ["a red heart", "dog", "a photo of a blue dog"]
    return pictures(n) if adapter.reads == "images" else texts[:n]


def prepared(adapter: Adapter, n: int) -> Any:
    return adapter.prepare(items(adapter, n))


def hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )


# ---- the contract


@every_site
def test_a_declared_site_is_what_a_forward_pass_gives(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    batch = prepared(adapter, 3)
    assert probe_site(adapter, site.name, prepared(adapter, 1)) == site
    assert activations(adapter, batch, site).shape == (3, site.tokens, site.width)


@every_site
def test_tokens_go_there_and_back(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    with inference(adapter.model), capture(adapter.model, [site.name]) as acts:
        adapter.run(prepared(adapter, 2))
    output = acts[site.name]
    assert torch.equal(from_tokens(to_tokens(output, site), site), output)


@every_site
def test_chosen_tokens_are_those_tokens(adapters: Get, name: str, site: Site) -> None:
    rows = torch.arange(2 * site.tokens).view(2, -1, 1).expand(-1, -1, site.width).float()
    assert torch.equal(select_tokens(rows, site, "all"), rows)
    patches = rows[:, site.prefix :]
    pooled = select_tokens(rows, site, "pooled")
    assert torch.equal(pooled, patches.mean(1, keepdim=True))
    if site.layout == "vector":
        with pytest.raises(DataError, match="one vector per image"):
            select_tokens(rows, site, "patches")
    else:
        assert torch.equal(select_tokens(rows, site, "patches"), patches)
    if site.prefix:
        assert torch.equal(select_tokens(rows, site, "cls"), rows[:, :1])
    else:
        with pytest.raises(DataError, match="no class token"):
            select_tokens(rows, site, "cls")


@every_site
def test_activations_are_what_plain_hooks_see(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    batch = prepared(adapter, 2)
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        entered = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        left = output[0] if isinstance(output, tuple) else output
        seen.append((entered.clone(), left.clone()))

    module = adapter.model.get_submodule(site.module)
    handle = module.register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        adapter.run(batch)
    handle.remove()
    [(entered, left)] = seen
    acts = from_tokens(activations(adapter, batch, site), site)
    if site.kind == "heads":
        torch.testing.assert_close(projected(module, acts), left)
    elif site.kind == "update":
        assert torch.equal(acts, left - entered)
    else:
        assert torch.equal(acts, left if site.kind == "output" else entered)


@torch.inference_mode()
def projected(attention: nn.Module, heads: Tensor) -> Tensor:
    """What the module makes of its heads, as matrix algebra: heads W^T + b."""
    names = [name for name in ("proj", "out_proj", "o_proj", "o") if hasattr(attention, name)]
    linear: Any = getattr(attention, names[0])
    out: Tensor = heads @ linear.weight.T
    return out if linear.bias is None else out + linear.bias


@every_site
def test_runs_agree_with_each_other(adapters: Get, name: str, site: Site) -> None:
    """Twice the same; alone or in a batch; stopping early or not."""
    adapter = adapters(name)
    batch = prepared(adapter, 3)
    acts = activations(adapter, batch, site)
    assert torch.equal(activations(adapter, batch, site), acts)
    alone = [adapter.prepare([item]) for item in items(adapter, 3)]
    single = torch.cat([activations(adapter, one, site) for one in alone])
    torch.testing.assert_close(single, acts, rtol=1e-4, atol=1e-4)
    with inference(adapter.model), capture(adapter.model, [site.name]) as whole:
        adapter.run(batch)
    assert torch.equal(to_tokens(whole[site.name], site), acts)


@every_site
def test_an_edit_that_changes_nothing_changes_nothing(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    batch, last = prepared(adapter, 2), CASES[name].sites[0].module
    with inference(adapter.model), capture(adapter.model, [last]) as plain:
        adapter.run(batch)
    changed = []
    with (
        inference(adapter.model),
        capture(adapter.model, [last]) as edited,
        edit(adapter.model, site.name, lambda tensor: changed.append(1) or tensor.clone()),
    ):
        adapter.run(batch)
    assert changed
    torch.testing.assert_close(edited[last], plain[last])


@every_adapter
def test_nothing_is_left_behind(adapters: Get, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, site = adapters(name), CASES[name].sites[0]
    batch = prepared(adapter, 1)
    before = fingerprint(adapter.model)
    for training in (False, True):
        adapter.model.train(training)
        probe_site(adapter, site.name, batch)
        activations(adapter, batch, site)
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(adapter, "run", lambda batch: 1 // 0)
            activations(adapter, batch, site)
        assert hooks(adapter.model) == 0
        assert all(m.training == training for m in adapter.model.modules())
    adapter.model.eval()
    assert fingerprint(adapter.model) == before


@every_adapter
def test_the_fingerprint_is_that_of_the_weights(adapters: Get, name: str) -> None:
    model = adapters(name).model
    before = fingerprint(model)
    assert fingerprint(model) == before and len(before) == 16
    for weight in (next(model.parameters()), list(model.parameters())[-1]):
        kept = weight.detach().clone()
        with torch.no_grad():
            weight += 1e-3
            assert fingerprint(model) != before
            weight.copy_(kept)
        assert fingerprint(model) == before


@every_adapter
def test_a_batch_is_prepared_from_pictures_of_any_mode(adapters: Get, name: str) -> None:
    adapter = adapters(name)
    if adapter.reads == "texts":
        pytest.skip("reads texts")
    rgb, grey = pictures(1)[0], pictures(1)[0].convert("L")
    batch = parts(adapter.prepare([rgb, grey.convert("RGB")]))
    assert len(batch[0]) == 2 and batch[0].dtype == torch.float32
    assert all(
        torch.equal(a[0], b[0]) for a, b in zip(parts(adapter.prepare([rgb])), batch, strict=True)
    )


def parts(batch: Any) -> list[Tensor]:
    return list(batch.values()) if isinstance(batch, dict) else [batch]


@every_adapter
def test_a_prompt_is_read_as_its_text(adapters: Get, name: str) -> None:
    adapter = adapters(name)
    if adapter.reads == "images":
        pytest.skip("reads images")
    prompts = [Prompt(text, seed=2) for text in items(adapter, 3)]
    pairs = zip(parts(adapter.prepare(prompts)), parts(prepared(adapter, 3)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(DataError, match="reads texts"):
        adapter.prepare(pictures(1))


@every_adapter
def test_texts_and_images_are_embedded_as_unit_vectors(adapters: Get, name: str) -> None:
    adapter = adapters(name)
    assert isinstance(adapter, TextImageAdapter) == CASES[name].embeds
    if isinstance(adapter, TextImageAdapter):
        images = adapter.embed_images(prepared(adapter, 3))
        texts = adapter.embed_texts(["red", "blue"])
        assert images.shape[1] == texts.shape[1] and len(texts) == 2
        for rows in (images, texts):
            torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))


# ---- shapes that are no site


@pytest.mark.parametrize(
    ("shape", "refused"),
    [
        ("b d", False), ("b t d", False), ("t b d", False), ("b d h w", False), ("b h h d", False),
        ("d b", True), ("t d b", True), ("d b h w", True), ("d", True), ("b", True),
        ("b t d h w", True), ("b b d", True),
    ],
)  # fmt: skip
def test_only_outputs_with_the_batch_in_its_place_are_sites(shape: str, refused: bool) -> None:
    sizes = {"t": 5, "d": 7, "h": 4, "w": 6}

    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            sizes["b"] = len(images)
            return self.site(torch.zeros([sizes[axis] for axis in shape.split()]))  # type: ignore[no-any-return]

    adapter = ModuleAdapter(Shaped(), to_input, name="shaped")
    example = torch.zeros(1, 3, 16, 16)
    if refused:
        with pytest.raises(DataError, match="'site' gives shapes .* for batches of 2 and 3"):
            probe_site(adapter, "site", example)
    else:
        assert probe_site(adapter, "site", example).width == 7


@pytest.mark.parametrize(
    ("prefix", "count", "grid"), [(1, 17, (4, 4)), (5, 21, (4, 4)), (0, 17, None)]
)
def test_patches_form_a_square_or_no_grid(prefix: int, count: int, grid: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, count * 2), nn.Unflatten(1, (count, 2)))
    adapter = ModuleAdapter(model, to_input, name="m", prefix_tokens=prefix)
    site = probe_site(adapter, "2", torch.zeros(1, 3, 16, 16))
    assert site == replace(tokens("2", 2, 4, 1), tokens=count, prefix=prefix, grid=grid)


def test_a_batch_goes_where_the_weights_are() -> None:
    adapter = ModuleAdapter(Conv().to("meta"), to_input, name="elsewhere")
    assert probe_site(adapter, "norm", torch.zeros(1, 3, 16, 16)) == feature_map("norm", 5, 4)
