"""One contract for every adapter: ours, a user's own module, timm's and open_clip's models."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vision_sae.adapter import (
    Adapter,
    Site,
    TextImageAdapter,
    fingerprint,
    from_tokens,
    load_adapter,
    probe_site,
    select_tokens,
    to_tokens,
)
from vision_sae.adapters.base import ModuleAdapter
from vision_sae.adapters.toy import to_input
from vision_sae.errors import DataError
from vision_sae.extract import activations
from vision_sae.hooks import capture, inference

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


def tiny_clip(folder: Path) -> Adapter:
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    (folder / "open_clip_config.json").write_text(json.dumps(TINY_CLIP))
    weights = open_clip.CLIP(**TINY_CLIP["model_cfg"]).state_dict()
    save_file(weights, folder / "open_clip_model.safetensors")
    return load_adapter(f"open_clip:local-dir:{folder}")


def tokens(name: str, width: int, side: int, prefix: int = 0, axis: int = 0) -> Site:
    return Site(name, "tokens", width, prefix + side * side, prefix, (side, side), axis)


def feature_map(name: str, width: int, side: int) -> Site:
    return Site(name, "map", width, side * side, 0, (side, side))


def last(name: str, width: int, side: int) -> Site:
    """A map [b h w d]."""
    return replace(feature_map(name, width, side), width_axis=3)


def vector(name: str, width: int) -> Site:
    return Site(name, "vector", width, 1, 0, None)


@dataclass(frozen=True)
class Case:
    make: Callable[[Path], Adapter]
    sites: list[Site]


CASES = {
    "toy": Case(
        toy, [tokens("blocks.1", 24, 4, 1), vector("head", 12), feature_map("embed", 24, 4)]
    ),
    "conv": Case(conv, [feature_map("norm", 5, 4), feature_map("pool", 5, 1), vector("head", 2)]),
    "sequence": Case(sequence, [tokens("norm", 8, 4, axis=1), tokens("attend", 8, 4, axis=1)]),
    "timm ViT": Case(
        timm("test_vit"),
        [tokens("blocks.2", 64, 10, 1), last("patch_embed", 64, 10), vector("head", 1000)],
    ),
    "timm ResNet": Case(
        timm("test_resnet"), [feature_map("bn1", 32, 80), feature_map("layer3", 192, 10)]
    ),
    "tiny CLIP": Case(tiny_clip, [tokens("visual.transformer.resblocks.0", 32, 4, 1)]),
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


def hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )


# ---- the contract


@every_site
def test_a_declared_site_is_what_a_forward_pass_gives(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    batch = adapter.prepare(pictures(3))
    assert probe_site(adapter, site.name, batch[:1]) == site
    assert activations(adapter, batch, site).shape == (3, site.tokens, site.width)


@every_site
def test_tokens_go_there_and_back(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    with inference(adapter.model), capture(adapter.model, [site.name]) as acts:
        adapter.run(adapter.prepare(pictures(2)))
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
def test_activations_are_what_a_plain_hook_sees(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    batch = adapter.prepare(pictures(2))
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = adapter.model.get_submodule(site.name).register_forward_hook(hook)
    with torch.no_grad():
        adapter.run(batch)
    handle.remove()
    assert len(seen) == 1
    assert torch.equal(from_tokens(activations(adapter, batch, site), site), seen[0])


@every_site
def test_runs_agree_with_each_other(adapters: Get, name: str, site: Site) -> None:
    """Twice the same; alone or in a batch; stopping early or not."""
    adapter = adapters(name)
    batch = adapter.prepare(pictures(3))
    acts = activations(adapter, batch, site)
    assert torch.equal(activations(adapter, batch, site), acts)
    single = torch.cat([activations(adapter, image[None], site) for image in batch])
    torch.testing.assert_close(single, acts, rtol=1e-4, atol=1e-4)
    with inference(adapter.model), capture(adapter.model, [site.name]) as whole:
        adapter.run(batch)
    assert torch.equal(to_tokens(whole[site.name], site), acts)


@every_adapter
def test_nothing_is_left_behind(adapters: Get, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, site = adapters(name), CASES[name].sites[0]
    batch = adapter.prepare(pictures(1))
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
    rgb, grey = pictures(1)[0], pictures(1)[0].convert("L")
    batch = adapter.prepare([rgb, grey.convert("RGB")])
    assert batch.shape[:2] == (2, 3) and batch.dtype == torch.float32
    assert torch.equal(adapter.prepare([rgb])[0], batch[0])


@every_adapter
def test_texts_and_images_are_embedded_as_unit_vectors(adapters: Get, name: str) -> None:
    adapter = adapters(name)
    assert isinstance(adapter, TextImageAdapter) == (name in ("toy", "tiny CLIP"))
    if isinstance(adapter, TextImageAdapter):
        images = adapter.embed_images(adapter.prepare(pictures(3)))
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
