"""Models and sites by name: what is refused, and what the refusal says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vision_sae.adapters.base import ModuleAdapter
from vision_sae.adapters.toy import to_input
from vision_sae.errors import ConfigError, DataError, MissingExtra, UnknownName
from vision_sae.model.adapter import Adapter, load_adapter
from vision_sae.model.probing import probe_site

EXAMPLE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "nobody",
            UnknownName,
            "no adapter 'nobody'; there are: diffusers, diffusers-noised",
        ),
        ("tim:vit", UnknownName, "no adapter 'tim'; did you mean timm"),
        ("toy:one", ConfigError, "a seed after its colon, as in toy:1; got 'one'"),
        ("open_clip:ViT-B32", UnknownName, "no open_clip model 'ViT-B32'; did you mean .*ViT-B-32"),
        ("open_clip:", UnknownName, "no open_clip model ''"),
        ("open_clip:ViT-B-32", ConfigError, "needs weights after a slash, got ''.*laion2b.*random"),
        ("open_clip:ViT-B-32/laion9", ConfigError, "got 'laion9': .*laion2b_s34b_b79k.*or a file"),
        ("open_clip:ViT-B-32//no/file.bin", ConfigError, "got '/no/file.bin'"),
        ("timm:resnet5", UnknownName, "no timm model 'resnet5'; did you mean .*resnet50"),
        ("timm:", UnknownName, "no timm model ''"),
        ("timm:resnet10t.c3_in2k", UnknownName, "no timm weights .*did you mean resnet10t.c3_in1k"),
        ("timm:resnet10t/randm", ConfigError, "nothing or `random` after a slash; got 'randm'"),
        ("timm:resnet10t/random?img_size=x", ConfigError, "a number of pixels.*got img_size=x"),
        ("timm:resnet10t/random?img_size=64", ConfigError, "takes images of any size"),
        (
            "timm:botnet50ts_256",
            ConfigError,
            "no weights for botnet50ts_256; .*botnet50ts_256/random",
        ),
    ],
)
def test_a_wrong_name_says_what_is_right(name: str, error: type[Exception], message: str) -> None:
    if name.startswith(("open_clip", "timm")):
        pytest.importorskip(name.partition(":")[0])
    with pytest.raises(error, match=message):
        load_adapter(name)


def test_a_name_is_what_the_adapter_remembers() -> None:
    assert load_adapter("toy:3").name == "toy:3"


@pytest.mark.parametrize("library", ["open_clip", "timm"])
def test_a_folder_that_holds_no_model_is_refused(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=f"{folder} holds no .*config.json"):
            load_adapter(f"{library}:local-dir:{folder}")


def test_a_folder_without_weights_does_not_become_a_random_model(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(DataError, match="holds no weights"):
        load_adapter(f"open_clip:local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("library", "name", "extra"),
    [
        ("open_clip", "open_clip:ViT-B-32/random", "clip"),
        ("open_clip", "emoji-clip", "clip"),
        ("timm", "timm:resnet10t/random", "timm"),
    ],
)
def test_a_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str, name: str, extra: str
) -> None:
    from vision_sae.assets import models

    for file in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / file).touch()
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"needs {library}, .*'vision-sae\[{extra}\]'"):
        load_adapter(name)


class Odd(nn.Module):
    """One site gives a dict without a tensor, one such a list, one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.site, self.listed = Dict(), List()
        self.idle = nn.Linear(1, 1)

    def forward(self, images: Tensor) -> Any:
        return self.site(images), self.listed(images)


class Dict(nn.Module):
    def forward(self, images: Tensor) -> dict[str, torch.Size]:
        return {"out": images.shape}


class List(nn.Module):
    def forward(self, images: Tensor) -> list[torch.Size]:
        return [images.shape]


@pytest.fixture
def odd() -> Adapter:
    return ModuleAdapter(Odd(), to_input, name="odd")


@pytest.mark.parametrize(
    ("site", "error", "message"),
    [
        ("sight", UnknownName, "no site 'sight'; did you mean site"),
        ("site", DataError, "site 'site' gives dict, not a tensor"),
        ("listed", DataError, "site 'listed' gives list, not a tensor"),
        ("idle", DataError, "site 'idle' of odd never ran in the forward pass"),
    ],
)
def test_a_wrong_site_says_why(
    odd: Adapter, site: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        probe_site(odd, site, EXAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "site", "shape"),
    [
        ("open_clip:ViT-B-32/random", "visual.transformer.resblocks.11", (50, 768)),
        ("timm:vit_tiny_patch16_224/random", "blocks.11", (197, 192)),
    ],
)
def test_models_as_people_use_them(name: str, site: str, shape: tuple[int, int]) -> None:
    pytest.importorskip(name.partition(":")[0])
    adapter = load_adapter(name)
    found = probe_site(adapter, site, torch.zeros(1, 3, 224, 224))
    assert adapter.name == name and (found.tokens, found.width, found.prefix) == (*shape, 1)
