"""Many SAEs in one pass: the same as one by one, resumable, and never mixed up."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vision_sae import families
from vision_sae.errors import CheckpointError, ConfigError
from vision_sae.jobs import train_store, train_sweep
from vision_sae.jobs.settings import recipe
from vision_sae.jobs.sweep import members_of
from vision_sae.provenance import Provenance
from vision_sae.store import Row, Store, StoreIndex, StoreWriter

D = 12
SMALL = {"expansion": 2, "steps": 20, "batch_size": 16}
GRID = {"family": ["topk", "relu"], "k": [2, 4], "seed": [0, 1]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("sweep") / "acts", 0)


def make_store(folder: Path, seed: int, site: str = "s") -> Store:
    index = StoreIndex(
        provenance=Provenance(model="m", fingerprint="f", site=site, tokens="all", data="d"),
        dtype="float32", width=D, tokens_per_image=2, prefix_tokens=0, grid=None,
    )  # fmt: skip
    writer = StoreWriter(folder, index)
    acts = torch.randn(40, 2, D, generator=torch.Generator().manual_seed(seed))
    writer.add(acts, [Row(i, f"k{i}", {}) for i in range(40)])
    writer.finish()
    return Store(folder)


def weights(folder: Path) -> bytes:
    return (folder / "sae.safetensors").read_bytes()


def test_members_are_what_single_trainings_give(store: Store, tmp_path: Path) -> None:
    train_sweep(store, tmp_path / "sweep", GRID, **SMALL)
    alone: list[tuple[str, dict[str, Any]]] = [
        ("topk-k2-seed0", {"family": "topk", "k": 2}),
        ("topk-k4-seed1", {"family": "topk", "k": 4, "seed": 1, "order": 0}),
        ("relu-seed1", {"family": "relu", "seed": 1, "order": 0}),
    ]
    for name, settings in alone:
        train_store(store, tmp_path / name, **SMALL, **settings)
        assert weights(tmp_path / name) == weights(tmp_path / "sweep" / name), name
        log = (tmp_path / name / "metrics.jsonl").read_bytes()
        assert log == (tmp_path / "sweep" / name / "metrics.jsonl").read_bytes()


def test_rows_are_read_once_for_all(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    gather = Store._gather
    monkeypatch.setattr(
        Store, "_gather", lambda self, rows: read.append(len(rows)) or gather(self, rows)
    )
    train_sweep(store, tmp_path, GRID, **SMALL)
    assert SMALL["steps"] <= read.count(16) <= SMALL["steps"] + 2  # read ahead


def test_an_interrupted_sweep_goes_on_exactly(store: Store, tmp_path: Path) -> None:
    train_sweep(store, tmp_path / "whole", GRID, **SMALL)

    def stop(member: str, step: int, numbers: dict[str, float]) -> None:
        if step == 10 and member == "topk-k4-seed1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sweep(store, tmp_path / "sweep", GRID, tell=stop, **SMALL)
    index = json.loads((tmp_path / "sweep" / "index.json").read_text())
    assert not any(member["finished"] for member in index["members"])
    steps: dict[str, int] = {}
    train_sweep(
        store, tmp_path / "sweep", GRID, tell=lambda m, step, n: steps.setdefault(m, step), **SMALL
    )
    assert all(steps.get(name, 10) == 10 for name in members_of(GRID, SMALL))
    for name in members_of(GRID, SMALL):
        assert weights(tmp_path / "whole" / name) == weights(tmp_path / "sweep" / name)
        assert not list((tmp_path / "sweep" / name).glob("training.*"))


def test_finished_members_are_not_trained_again(store: Store, tmp_path: Path) -> None:
    train_sweep(store, tmp_path, {"k": [2, 3]}, **SMALL)
    before = weights(tmp_path / "k2")
    told: set[str] = set()
    index = train_sweep(
        store, tmp_path, {"k": [2, 4]}, tell=lambda name, step, n: told.add(name), **SMALL
    )
    assert told == {"k4"} and weights(tmp_path / "k2") == before
    assert sorted(member.name for member in index.members) == ["k2", "k3", "k4"]
    assert all(member.finished and member.metrics for member in index.members)


def test_members_one_after_the_other_are_the_same(store: Store, tmp_path: Path) -> None:
    train_sweep(store, tmp_path / "all", {"k": [2, 3, 4]}, **SMALL)
    train_sweep(store, tmp_path / "two", {"k": [2, 3, 4]}, together=2, **SMALL)
    for name in ("k2", "k3", "k4"):
        assert weights(tmp_path / "all" / name) == weights(tmp_path / "two" / name)
    with pytest.raises(ConfigError, match="together must be at least 1"):
        train_sweep(store, tmp_path / "none", {"k": [2]}, together=0, **SMALL)


def test_another_store_or_other_settings_are_refused(store: Store, tmp_path: Path) -> None:
    train_sweep(store, tmp_path / "sweep", {"k": [2]}, **SMALL)
    other = make_store(tmp_path / "other", 1)
    with pytest.raises(CheckpointError, match=r"other settings \(acts\)"):
        train_sweep(other, tmp_path / "sweep", {"k": [2]}, **SMALL)
    with pytest.raises(CheckpointError, match=r"other settings \(lr, steps\)"):
        train_sweep(store, tmp_path / "sweep", {"k": [2]}, **SMALL | {"steps": 21, "lr": 1e-3})
    index = train_sweep(other, tmp_path / "sweep", {"k": [2]}, overwrite=True, **SMALL)
    assert index.acts == str(tmp_path / "other")


def test_members_may_be_transcoders_with_their_targets(store: Store, tmp_path: Path) -> None:
    targets = make_store(tmp_path / "targets", 2, site="t")
    index = train_sweep(store, tmp_path / "sweep", {"k": [2]}, targets=targets, **SMALL)
    assert index.targets == str(tmp_path / "targets")
    assert index.members[0].metrics and index.members[0].metrics["rows"] == 80


def test_names_of_members() -> None:
    assert list(members_of({}, {"family": "gated"})) == ["gated"]
    grid = {"lr": [1e-5, 0.1], "dead": ["none"], "tied": [True], "betas": [[0.9, 0.99]]}
    assert list(members_of(grid, {})) == [
        f"lr{lr}-dead_none-tied_true-betas_0.9_0.99" for lr in ("1e-05", "0.1")
    ]
    with pytest.raises(ConfigError, match="two members of the grid would have the name dead_a_b"):
        members_of({"dead": ["a b", "a_b"]}, {})


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ({"nest.ks": [2, 4]}, "k"),
        ({"nest.shares": [0.5, 1]}, "prefix"),
        ({"nest.ks": [2, 4], "nest.shares": [0.5, 1]}, "both"),
        ({"nest.count": 3}, "random"),
    ],
)
def test_the_kind_of_a_nest_is_found_from_its_parts(parts: dict[str, Any], kind: str) -> None:
    nest = recipe({"family": "topk", "k": 4, **parts}).config(12).nest
    assert nest is not None and nest.kind == kind


def test_parts_that_several_kinds_have_need_its_name() -> None:
    with pytest.raises(ConfigError, match="nest.reduction is of several kinds; set nest to prefix"):
        recipe({"nest.reduction": "sum"})


def test_a_grid_leaves_out_what_only_other_families_have() -> None:
    grid: dict[str, list[Any]] = {"family": ["topk", "relu"], "k": [2, 4], "coefficient": [1, 2.5]}
    members = members_of(grid, {"steps": 9, "seed": 7})
    assert list(members) == ["topk-k2", "topk-k4", "relu-coefficient1", "relu-coefficient2.5"]
    assert members["topk-k2"] == {"order": 7, "steps": 9, "seed": 7, "family": "topk", "k": 2}
    assert "k" not in members["relu-coefficient1"]
    with pytest.raises(ConfigError, match="bandwidth is a setting of jumprelu"):
        members_of(grid, {"bandwidth": 1})
    with pytest.raises(ConfigError, match="the grid's dead must be a list of values; got 'auxk'"):
        members_of({"dead": "auxk"}, {})


@pytest.mark.parametrize("family", list(families.OURS))
def test_every_family_goes_on_exactly(store: Store, tmp_path: Path, family: str) -> None:
    settings = {
        **SMALL,
        "s": 32,
        "family": family,
        "ema": 0.9,
        "dead": "resample",
        "nest": "prefix",
    }
    train_store(store, tmp_path / "whole", **settings)

    def stop(step: int, numbers: dict[str, float]) -> None:
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_store(store, tmp_path / "sae", on_log=stop, **settings)
    train_store(store, tmp_path / "sae", **settings)
    assert weights(tmp_path / "sae") == weights(tmp_path / "whole")
