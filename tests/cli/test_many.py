"""`sweep` and `suite` as people use them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Fine = Callable[..., Result]
Refused = Callable[..., str]
SMALL = ["--steps", 6, "--batch-size", 32, "--expansion", 2]


def sweep(toy: Path, out: Path, *more: object) -> list[Any]:
    return ["sweep", "--acts", toy / "acts", "--out", out, *SMALL, *more]


def test_a_sweep_as_a_table_and_as_json(fine: Fine, toy: Path, tmp_path: Path) -> None:
    grid = ["--grid", "family=topk,relu", "--grid", "k=2,4", "--grid", "seed=0,1"]
    shown = fine(*sweep(toy, tmp_path, *grid)).stdout
    names = ["topk-k2-seed0", "topk-k2-seed1", "topk-k4-seed0", "topk-k4-seed1"]
    names += ["relu-seed0", "relu-seed1"]
    assert all(name in shown for name in names) and "fvu" in shown
    index = json.loads(fine(*sweep(toy, tmp_path, *grid, "--json")).stdout)
    assert [member["name"] for member in index["members"]] == names
    assert all(m["finished"] and m["metrics"]["fvu"] > 0 for m in index["members"])
    assert index == json.loads((tmp_path / "index.json").read_text())


def test_a_grid_of_lists_words_and_a_file(fine: Fine, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"family": "batchtopk", "k": 4}))
    grid = ["--grid", "nest.ks=[1,2],[2,4]", "--grid", "dead=none,auxk", "--grid", "lr=1e-3"]
    fine(*sweep(toy, tmp_path / "out", *grid, "--config", tmp_path / "settings.json"))
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert names == {
        f"nest.ks_{ks}-dead_{dead}-lr0.001" for ks in ("1_2", "2_4") for dead in ("none", "auxk")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "k=2,99"], "k must lie in 1..48 (the number of latents); got 99"),
        (["--grid", "k="], "--grid takes NAME=VALUE; got 'k='"),
        (["--grid", "k=2", "--grid", "k=4"], "--grid k is given twice"),
        (["--grid", "k=2", "--k", 4], "k: set once, and varied in the grid; choose one"),
        (["--grid", "kk=2"], "no setting 'kk'"),
        (["--grid", "coefficient=2,3"], "coefficient is a setting of relu, panneal, jumprelu and"),
        (["--grid", "family=topk,batchtop"], "no family 'batchtop'; there are: topk, batchtopk"),
        (["--grid", "lr=0.1,-1"], "lr: Input should be greater than 0; got -1"),
    ],
)
def test_grids_that_cannot_be(
    refused: Refused, toy: Path, tmp_path: Path, options: list[Any], message: str
) -> None:
    assert message in refused(*sweep(toy, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_folders_of_something_else(fine: Fine, refused: Refused, toy: Path, tmp_path: Path) -> None:
    grid = ["--grid", "k=2"]
    assert "index.json is not of a sweep" in refused(*sweep(toy, toy / "acts", *grid))
    assert "not of a sweep" in refused(*sweep(toy, toy / "acts", *grid, "--overwrite"))
    (tmp_path / "thesis.tex").touch()
    assert "already holds something else (thesis.tex)" in refused(*sweep(toy, tmp_path, *grid))
    fine(*sweep(toy, tmp_path / "out", *grid))
    message = refused(*sweep(toy, tmp_path / "out", *grid, "--steps", 7))
    assert "holds a sweep with other settings (steps)" in message and "--overwrite" in message
    fine(*sweep(toy, tmp_path / "out", *grid, "--steps", 7, "--overwrite"))


def live(toy: Path) -> list[Any]:
    """A model to sweep over in place of a store."""
    return ["--model", "toy", "--site", "blocks.0", "--data", toy / "images", "--tokens", "patches"]


def test_a_sweep_over_a_running_model(fine: Fine, toy: Path, tmp_path: Path) -> None:
    command = ["sweep", *live(toy), "--out", tmp_path, *SMALL, "--grid", "k=2,4"]
    index = json.loads(fine(*command, "--json").stdout)
    assert index["acts"] is None and "stream of toy:0 at blocks.0 (patches)" in index["stream"]
    assert all(m["finished"] and m["metrics"]["fvu"] > 0 for m in index["members"])
    fine(*command)  # all are there already


@pytest.mark.parametrize("also", [["--acts", "acts"], []])
def test_a_sweep_reads_one_thing(refused: Refused, toy: Path, tmp_path: Path, also: Any) -> None:
    half = ["--model", "toy"] if also else []
    message = refused("sweep", *also, *half, "--out", tmp_path / "out", "--grid", "k=2")
    assert "reads --acts, or --model, --site and --data together; got" in message


# ---- suites


def suite(toy: Path, folder: Path, **changes: Any) -> Path:
    """A config on disk."""
    config = {
        "model": "toy", "data": str(toy / "images"), "sites": ["blocks.*", "head"],
        "tokens": "pooled", "settings": {"expansion": 2, "steps": 6, "batch_size": 8},
        "grid": {"k": [1, 2]}, "out": str(folder / "out"),
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / "suite.json"
    path.write_text(json.dumps(config | changes))
    return path


def test_a_dry_run_writes_nothing(fine: Fine, toy: Path, tmp_path: Path) -> None:
    path = suite(toy, tmp_path)
    shown = fine("suite", path, "--dry-run").stdout
    assert all(text in shown for text in ("blocks.0", "blocks.1", "head", "1.54 kB", "k2"))
    found = json.loads(fine("suite", path, "--dry-run", "--json").stdout)
    assert [site["site"] for site in found["sites"]] == ["blocks.0", "blocks.1", "head"]
    assert found["sites"][0]["acts_bytes"] == 16 * 24 * 4
    assert found["bytes"] == sum(s["acts_bytes"] + s["sae_bytes"] for s in found["sites"])
    assert not (tmp_path / "out").exists()


def test_a_suite_from_its_config_to_its_index(fine: Fine, toy: Path, tmp_path: Path) -> None:
    path = suite(toy, tmp_path)
    shown = fine("suite", path).stdout
    assert "out: blocks.1" in shown and "k2" in shown
    index = json.loads(fine("suite", path, "--json").stdout)
    assert index == json.loads((tmp_path / "out" / "index.json").read_text())
    assert [site["folder"] for site in index["sites"]] == ["blocks.0", "blocks.1", "head"]
    members = [member for site in index["sites"] for member in site["members"]]
    assert len(members) == 6 and all(m["finished"] for m in members)
    fine("eval", tmp_path / "out" / "head" / "k1")


def test_a_suite_that_stores_no_activations(fine: Fine, toy: Path, tmp_path: Path) -> None:
    path = suite(toy, tmp_path, stored=False)
    found = json.loads(fine("suite", path, "--dry-run", "--json").stdout)
    assert all(site["acts_bytes"] == 0 < site["sae_bytes"] for site in found["sites"])
    index = json.loads(fine("suite", path, "--json").stdout)
    members = [member for site in index["sites"] for member in site["members"]]
    assert len(members) == 6 and all(m["finished"] and m["metrics"] for m in members)
    assert not any(site["extracted"] for site in index["sites"])
    assert not list((tmp_path / "out").glob("*/acts"))
    assert index == json.loads(fine("suite", path, "--json").stdout)


def test_the_example_is_a_config(fine: Fine) -> None:
    from vision_sae.jobs.suite import suite_config

    config = suite_config(json.loads(fine("suite", "--example").stdout))
    assert config.model == "emoji-clip" and config.grid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": ["bloks.*"]}, "no site 'bloks.*'; did you mean blocks"),
        ({"sites": ["blocks.*.mlp.7"]}, "no site 'blocks.*.mlp.7'; did you mean"),
        ({"sites": []}, "sites: Tuple should have at least 1 item"),
        ({"tokns": "cls"}, "no suite key 'tokns'; did you mean tokens?"),
        ({"tokens": "class"}, "tokens: Input should be 'cls', 'registers', 'patches', 'pooled' or"),
        ({"tokens": "cls", "sites": ["head"]}, "site 'head' has no class token"),
        ({"model": "toi"}, "no adapter 'toi'; did you mean toy"),
        ({"data": "nowhere"}, "'nowhere' is neither a data set"),
        ({"grid": {"k": 4}}, "grid.k: Input should be a valid list"),
        ({"grid": {"k": [100]}}, "k must lie in 1..48 (the number of latents); got 100"),
        ({"settings": {"step": 3}}, "no setting 'step'; did you mean steps (training)"),
    ],
)
def test_suites_that_cannot_be(
    refused: Refused, toy: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    message = message.replace("Tuple", "List")
    assert message in refused("suite", suite(toy, tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_a_suite_without_a_config(refused: Refused, tmp_path: Path) -> None:
    assert "`vision-sae suite --example` prints one" in refused("suite")
    assert "cannot be read" in refused("suite", tmp_path / "none.json")


def test_a_suite_of_other_settings(fine: Fine, refused: Refused, toy: Path, tmp_path: Path) -> None:
    fine("suite", suite(toy, tmp_path, sites=["head"]))
    changes = {"expansion": 2, "steps": 7, "batch_size": 8}
    message = refused("suite", suite(toy, tmp_path, sites=["head"], settings=changes))
    assert "holds a suite with other settings (settings)" in message
    fine("suite", suite(toy, tmp_path, sites=["head"], settings=changes), "--overwrite")
    assert "index.json is not of a suite" in refused(
        "suite", suite(toy, tmp_path, out=str(toy / "acts"))
    )
