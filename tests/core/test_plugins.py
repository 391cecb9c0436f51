"""Plugins come by name from whatever is installed, and only when asked for."""

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from vision_sae import checkpoint, families, plugins
from vision_sae.errors import ConfigError, UnknownName, VisionSAEError
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, train

FAKES = [
    EntryPoint("mine", "json:loads", plugins.ADAPTERS),
    EntryPoint("both", "json:loads", plugins.ADAPTERS),
    EntryPoint("both", "json:dumps", plugins.ADAPTERS),
    EntryPoint("twin", "json:dumps", plugins.ADAPTERS),
    EntryPoint("twin", "json:dumps", plugins.ADAPTERS),
    EntryPoint("late", "a_module_that_is_not_there:x", plugins.ADAPTERS),
]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(group: str) -> list[Any]:
        return [point for point in FAKES if point.group == group]

    monkeypatch.setattr(plugins, "entry_points", found)


def test_ours_are_installed() -> None:
    assert {"emoji-clip", "open_clip", "timm", "toy"} <= set(plugins.names(plugins.ADAPTERS))
    assert "emoji-canvas" in plugins.names(plugins.DATA)


@pytest.mark.usefixtures("fakes")
def test_listing_imports_nothing() -> None:
    assert plugins.names(plugins.ADAPTERS) == ["both", "late", "mine", "twin"]
    assert "a_module_that_is_not_there" not in sys.modules


@pytest.mark.usefixtures("fakes")
def test_a_plugin_is_what_its_entry_point_names() -> None:
    assert plugins.load(plugins.ADAPTERS, "mine")("[1]") == [1]
    assert plugins.load(plugins.ADAPTERS, "twin")([1]) == "[1]"  # found twice, but one and the same


@pytest.mark.usefixtures("fakes")
def test_a_name_that_two_packages_claim_is_refused() -> None:
    with pytest.raises(
        VisionSAEError, match="'both' is claimed by several.*json:dumps, json:loads"
    ):
        plugins.load(plugins.ADAPTERS, "both")


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("group", "message"),
    [
        (plugins.ADAPTERS, "no adapter 'nobody'; there are: both, late, mine, twin"),
        (plugins.RECIPES, "no recipe 'nobody'; there are: none"),
    ],
)
def test_an_unknown_plugin_lists_what_there_is(group: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        plugins.load(group, "nobody")


# ---- a family of another package

MODULE = '''
"""Softplus of the k largest, from a package that is not ours."""

from typing import Literal

import torch

from vision_sae.sparse import select
from vision_sae.sparse.codes import Support
from vision_sae.families import Family


class SoftTopK(Family):
    kind: Literal["softtopk"] = "softtopk"
    k: int
    price: float = 0.01

    def attach(self, sae):
        sae.gain = torch.nn.Parameter(torch.ones(sae.config.s))
        sae.register_buffer("batches", torch.zeros(()))
        sae.register_buffer("calibrated_on", torch.zeros(()))

    def follow(self, sae, codes):
        sae.batches += 1

    def calibrate(self, sae, x):
        sae.calibrated_on += len(x)

    def entries(self, sae, product, k):
        z, latents = select.top(product, k or self.k)
        return Support.even(latents, product.shape[1]), z.flatten()

    def activate(self, sae, z, at):
        return torch.nn.functional.softplus(z) * at(sae.gain)

    def penalty(self, p):
        return self.price * p.codes.values.sum() / p.rows


no_family = 3
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that declares two families, of which one is none."""
    (tmp_path / "soft_topk.py").write_text(MODULE)
    about = tmp_path / "soft_topk-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: soft-topk\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[vision_sae.families]\nsofttopk = soft_topk:SoftTopK\nbroken = soft_topk:no_family\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("soft_topk", None)


@pytest.mark.usefixtures("package")
def test_a_third_partys_family_is_a_family(tmp_path: Path) -> None:
    """It is configured, trained, resumed, saved and read as ours are."""
    assert families.names()[-2:] == ["broken", "softtopk"]
    config = SAEConfig.of(8, 24, "softtopk", k=3, price=0.1)
    again = SAEConfig.model_validate_json(config.model_dump_json())
    assert again == config and again.sparsity.describe() == "softtopk, k 3, price 0.1"
    x = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    losses: list[float] = []
    sae = train(
        SAE(config), MemoryStore(x), TrainConfig(steps=30, batch_size=32, lr=0.01), log_every=1,
        on_log=lambda step, numbers: losses.append(numbers["loss"]), folder=tmp_path / "run",
    )  # fmt: skip
    assert sum(losses[-5:]) < sum(losses[:5])
    assert (float(sae.batches), float(sae.calibrated_on)) == (30, 128)  # type: ignore[arg-type]
    checkpoint.save(sae, tmp_path / "sae")
    loaded = checkpoint.load(tmp_path / "sae")
    assert type(loaded.config.sparsity).__name__ == "SoftTopK"
    assert torch.equal(loaded(x).x_hat, sae(x).x_hat)
    with pytest.raises(ConfigError, match="kk: Extra inputs are not permitted"):
        SAEConfig.of(8, 24, "softtopk", k=3, kk=2)


@pytest.mark.usefixtures("package")
def test_a_plugin_that_is_no_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="the plugin 'broken' is no Family: 3"):
        SAEConfig.of(8, 24, "broken")


def test_a_saved_family_whose_package_is_gone_is_named() -> None:
    with pytest.raises(ConfigError, match="no family 'softtopk'; there are: topk"):
        SAEConfig.of(8, 24, "softtopk")
