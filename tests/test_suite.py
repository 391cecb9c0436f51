"""All sites of a model from one config: patterns, plans, and going on after any interruption."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vision_sae.adapters.toy import ToyAdapter
from vision_sae.errors import DataError, UnknownName
from vision_sae.jobs import run_suite
from vision_sae.jobs.suite import SuiteConfig, matching_sites, plan_suite
from vision_sae.store import Store


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite") / "images"
    folder.mkdir()
    for i in range(16):
        Image.new("RGB", (16, 16), (15 * i, 255 - 15 * i, 40 * (i % 4))).save(
            folder / f"{i:02}.png"
        )
    return folder


def config(images: Path, out: Path, **changes: Any) -> SuiteConfig:
    plain = {
        "model": "toy", "data": str(images), "sites": ["blocks.*"], "tokens": "patches",
        "settings": {"expansion": 2, "steps": 20, "batch_size": 64}, "batch_size": 4,
        "grid": {"family": ["topk", "relu"], "k": [2, 4]}, "out": str(out),
    }  # fmt: skip
    return SuiteConfig.model_validate(plain | changes)


def files(out: Path) -> dict[str, bytes]:
    """All that a suite made, but for what names its own folder."""
    found = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*"))}
    kept = {n: p for n, p in found.items() if p.is_file() and "tensorboard" not in n}
    return {
        name: path.read_text().replace(str(out), "OUT").encode()
        if path.suffix == ".json"
        else path.read_bytes()
        for name, path in kept.items()
    }


def test_patterns_stay_within_a_part_of_a_path() -> None:
    toy, example = ToyAdapter(), torch.zeros(1, 3, 16, 16)

    def names(*patterns: str) -> list[str]:
        return [site.name for site in matching_sites(toy, patterns, example)]

    assert names("blocks.*") == ["blocks.0", "blocks.1"]
    assert names("head", "blocks.[1-9]") == ["blocks.1", "head"]  # in the model's order
    assert names("blocks.0.mlp.?") == [f"blocks.0.mlp.{i}" for i in range(3)]
    assert names("*") == ["embed", "head"]  # blocks, a list, gives no tensor
    with pytest.raises(UnknownName, match="no site 'block.*'; did you mean blocks"):
        names("head", "block.*")
    with pytest.raises(DataError, match="'blocks'.* never ran"):
        names("blocks")


def test_a_plan_knows_the_sizes(images: Path, tmp_path: Path) -> None:
    plan = plan_suite(config(images, tmp_path / "out", dtype="float16"))
    assert [site.site.name for site in plan.sites] == ["blocks.0", "blocks.1"]
    assert plan.images == 16 and not (tmp_path / "out").exists()
    run_suite(plan)
    for site in plan.sites:
        shards = (site.folder / "acts").glob("*.safetensors")
        assert sum(path.stat().st_size for path in shards) == pytest.approx(
            site.acts_bytes, rel=0.02
        )
        saved = [site.folder / name / "sae.safetensors" for name in site.members]
        assert sum(path.stat().st_size for path in saved) == pytest.approx(site.sae_bytes, rel=0.1)


def test_each_site_is_what_a_sweep_on_its_store_gives(images: Path, tmp_path: Path) -> None:
    from vision_sae.jobs import train_sweep

    wanted = config(images, tmp_path / "suite")
    run_suite(wanted)
    for site in ("blocks.0", "blocks.1"):
        store = Store(tmp_path / "suite" / site / "acts")
        assert store.index.provenance.site == site and store.index.provenance.tokens == "patches"
        train_sweep(store, tmp_path / site, wanted.grid, **wanted.settings)
        for name in ("topk-k2", "topk-k4", "relu"):
            folders = (tmp_path / site, store.folder.parent)
            one, other = ((f / name / "sae.safetensors").read_bytes() for f in folders)
            assert one == other


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run gives."""
    out = tmp_path_factory.mktemp("whole")
    run_suite(config(images, out))
    return files(out)


def test_a_suite_stopped_while_extracting_goes_on(
    images: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    seen: list[int] = []

    def stop(count: int) -> None:
        seen.append(count)
        if sum(seen) > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suite(config(images, tmp_path), on_images=stop)
    index = json.loads((tmp_path / "index.json").read_text())
    assert [site["extracted"] for site in index["sites"]] == [False, False]
    run_suite(config(images, tmp_path))
    assert files(tmp_path) == whole


def test_a_suite_stopped_while_training_goes_on(
    images: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    def stop(member: str, step: int, numbers: dict[str, float]) -> None:
        if member == "blocks.1/topk-k2" and step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suite(config(images, tmp_path), tell=stop)
    assert len(list(tmp_path.rglob("training.safetensors"))) == 6
    told: list[int] = []
    index = run_suite(config(images, tmp_path), tell=lambda member, step, n: told.append(step))
    assert set(told) <= {10} and files(tmp_path) == whole
    assert all(member.finished for site in index.sites for member in site.members)


def test_sites_and_points_can_be_added(images: Path, tmp_path: Path) -> None:
    run_suite(config(images, tmp_path, sites=["blocks.1"], grid={"k": [2]}))
    before = (tmp_path / "blocks.1" / "k2" / "sae.safetensors").read_bytes()
    index = run_suite(config(images, tmp_path, sites=["blocks.0"], grid={"k": [2, 4]}))
    assert [(s.site, [m.name for m in s.members]) for s in index.sites] == [
        ("blocks.0", ["k2", "k4"]),
        ("blocks.1", ["k2"]),
    ]
    index = run_suite(config(images, tmp_path, grid={"k": [2, 4]}))
    assert all(len(site.members) == 2 for site in index.sites)
    assert (tmp_path / "blocks.1" / "k2" / "sae.safetensors").read_bytes() == before


def test_a_suite_may_be_given_as_a_file_or_as_data(images: Path, tmp_path: Path) -> None:
    data = config(images, tmp_path / "out", sites=["head"], tokens="pooled").model_dump()
    (tmp_path / "suite.json").write_text(json.dumps(data))
    assert run_suite(data) == run_suite(tmp_path / "suite.json")
