"""`compare` as people use it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Fine = Callable[..., Result]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def sweep(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vision_sae.jobs import train_sweep
    from vision_sae.store import Store

    out = tmp_path_factory.mktemp("compare") / "sweep"
    train_sweep(Store(toy / "acts"), out, {"k": [2, 4]}, steps=6, batch_size=32, expansion=2)
    return out


def test_a_table_a_page_and_json(fine: Fine, toy: Path, sweep: Path, tmp_path: Path) -> None:
    command = ["compare", sweep, "--acts", toy / "acts", "--baselines", "pca:2,neurons"]
    command += ["--measures", "reconstruction,cknna,seeds"]
    shown = fine(*command, "--out", tmp_path / "page")
    assert all(name in shown.stdout for name in ("k2", "k4", "pca:2", "neurons", "fvu", "cknna"))
    assert "stability: only one seed of it was given" in shown.stderr
    page = (tmp_path / "page" / "index.html").read_text()
    assert "4 dictionaries compared" in page and "mean over seeds" in page
    again = json.loads(fine(*command, "--out", tmp_path / "page", "--json").stdout)
    assert again == json.loads((tmp_path / "page" / "comparison.json").read_text())
    assert [entry["name"] for entry in again["entries"]] == ["k2", "k4", "pca:2", "neurons"]
    assert again["entries"][0]["scores"]["l0"]["value"] == 2
    assert again["entries"][0]["scores"]["stability"]["value"] is None


def test_the_measures_are_listed(fine: Fine) -> None:
    assert "monosemanticity" in fine("compare", "--list").stdout
    listed = json.loads(fine("compare", "--list", "--json").stdout)
    assert listed["monosemanticity"]["needs"] == ["embeddings"]
    assert "arXiv" in listed["monosemanticity"]["about"]


def test_what_cannot_be_compared(refused: Refused, toy: Path, sweep: Path, tmp_path: Path) -> None:
    acts = ["--acts", toy / "acts"]
    assert "nothing to compare" in refused("compare", *acts)
    assert "no measure 'fuv'" in refused("compare", sweep, *acts, "--measures", "fuv")
    assert "no baseline 'pcaa'" in refused("compare", sweep, *acts, "--baselines", "pcaa")
    assert "names with commas" in refused("compare", sweep, *acts, "--baselines", "pca,,ica")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    message = refused("compare", sweep, *acts, "--out", tmp_path / "full")
    assert "already holds something else" in message
