"""Two processes, by rows or by latents, train what one does: all trainings of pair.py at once."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vision_sae import checkpoint
from vision_sae.jobs.sweep import read_index
from vision_sae.parallel import ALONE, Kind

pytestmark = pytest.mark.slow

PAIR = Path(__file__).with_name("pair.py")
ROUNDING = 1e-12  # in float64
ROUGH = {"preact": 1e-8}
# bfloat16 sums in another order, so that another latent may win a row, and Adam brings the rounding
# of gradients near 0 to full size: two steps of it move a weight by at most 2 lr, here and there.
# By how much of a step, and how many: reconstructions themselves are summed when latents are shared
BFLOAT16, LR = "topk, bfloat16", 3e-3
FEW: dict[str, tuple[float, float]] = {"rows": (0.01, 0.03), "latents": (0.3, 0.08)}


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("pair", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["pair"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


pair = _load(PAIR)
NAMES = list(pair.CASES)
KINDS: list[Kind] = ["rows", "latents"]


def torchrun(kind: Kind, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, str(PAIR), kind, str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """kind -> (folder, what each of the two processes has)."""

    @cache
    def of(kind: Kind) -> tuple[Path, list[dict[str, Any]]]:
        out = tmp_path_factory.mktemp(kind)
        pair.store(out / "acts")
        for name, case in pair.CASES.items():
            if case.first == "alone":
                pair.begin(case, ALONE, out / name)
        done = torchrun(kind, out)
        assert done.returncode == 0, done.stderr[-3000:]
        ranks = [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]
        for name, case in pair.CASES.items():
            if case.then == "alone":
                assert (out / name / "training.safetensors").exists()
                for results in ranks:
                    results[name] = asdict(pair.finish(case, ALONE, out / name))
        return out, ranks

    return of


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name -> (folder, what one process makes of it without a stop)."""

    @cache
    def of(name: str) -> tuple[Path, dict[str, Any]]:
        out = tmp_path_factory.mktemp("alone")
        return out, asdict(pair.finish(pair.CASES[name], ALONE, out))

    return of


def same(one: dict[str, Any], other: dict[str, Any], within: float) -> None:
    assert one["config"] == other["config"]
    assert one["state"].keys() == other["state"].keys()
    for name, tensor in one["state"].items():
        close = torch.testing.assert_close
        close(other["state"][name], tensor, rtol=within, atol=within, equal_nan=True)


def nearly_same(one: dict[str, Any], other: dict[str, Any], kind: Kind) -> None:
    """No weight is further away than two steps can bring it, and few are by much."""
    names = [name for name in one["state"] if name.startswith(("W_", "b_"))]
    away = [(one["state"][name] - other["state"][name]).abs().flatten() for name in names]
    assert len(names) == 4 and float(torch.cat(away).max()) < 4 * LR
    much, few = FEW[kind]
    assert float((torch.cat(away) > much * LR).double().mean()) < few


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_as_one_does(kind: Kind, name: str, trained: Any, alone: Any) -> None:
    ranks = [results[name] for results in trained(kind)[1]]
    if kind == "latents" and name in pair.WHOLE:
        refused = "cannot have its latents on several processes; share rows instead"
        assert all(refused in one["error"] for one in ranks)
        return
    usual, within = alone(name)[1], ROUGH.get(name, ROUNDING)
    for one in ranks:
        assert one["error"] == usual["error"]
        if name == BFLOAT16:
            nearly_same(usual, one, kind)
            continue
        same(usual, one, within)
    assert bool(usual["error"]) == (name.startswith("poisoned") or name == "too fast")


@pytest.mark.parametrize("name", [n for n in NAMES if pair.CASES[n].then == "pair"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_first_process_speaks_and_of_the_whole_batch(
    kind: Kind, name: str, trained: Any, alone: Any
) -> None:
    first, second = (results[name]["said"] for results in trained(kind)[1])
    assert not second
    if kind == "latents" and name in pair.WHOLE:
        return
    usual = {row["step"]: row for row in alone(name)[1]["said"]}
    for row in first:
        # rounded scores tie, and each way of sharing latents breaks ties its own way
        within = 3e-2 if name == BFLOAT16 else max(1e-6, 10 * ROUGH.get(name, 0))
        assert row == pytest.approx(usual[row["step"]], rel=within)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_trainings_went_on_and_left_nothing(kind: Kind, trained: Any) -> None:
    out, ranks = trained(kind)
    stopped = [name for name in NAMES if pair.CASES[name].stop is not None]
    assert len(stopped) >= 4
    for name in stopped:
        assert ranks[0][name]["said"][0]["step"] == pair.CASES[name].stop + 1
        assert not list((out / name).iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_the_series_holds_whole_saes(kind: Kind, trained: Any, alone: Any) -> None:
    usual, out = alone("series")[0] / "series", trained(kind)[0] / "series" / "series"
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in usual.iterdir())
    for folder in usual.iterdir():
        one, other = checkpoint.load(folder), checkpoint.load(out / folder.name)
        assert one.config == other.config
        for name, tensor in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_of_two_processes_is_that_of_one(kind: Kind, trained: Any, tmp_path: Path) -> None:
    out = trained(kind)[0]
    pair.sweep(out / "acts", tmp_path / "sweep", ALONE)
    usual, found = read_index(tmp_path / "sweep"), read_index(out / "sweep")
    assert [m.name for m in found.members] == [m.name for m in usual.members]
    for one, other in zip(usual.members, found.members, strict=True):
        assert other.metrics == pytest.approx(one.metrics, rel=1e-3, abs=1e-3)
        alone, both = (
            checkpoint.load(folder / one.name) for folder in (tmp_path / "sweep", out / "sweep")
        )
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(both.state_dict()[name], tensor, rtol=1e-3, atol=2e-4)


def test_the_cases_hold_what_they_say(alone: Any) -> None:
    """Dead latents are there where they are treated, and resampling moves them."""
    for name in ("auxk", "auxk, many", "auxk, all on one process", "auxk, saelens", "ghost"):
        assert alone(name)[1]["said"][-1]["dead_loss"] > 0, name
    resampled = alone("resample")[1]["said"]
    assert max(row["dead"] for row in resampled) > 0 == resampled[-1]["dead"]


def test_when_one_process_fails_none_is_left_waiting(tmp_path: Path) -> None:
    (tmp_path / "fails").touch()
    done = torchrun("rows", tmp_path)
    assert done.returncode != 0
    assert "StoreError: the disk is broken" in done.stderr
