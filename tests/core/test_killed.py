"""A training that is killed at any moment goes on as if nothing had happened."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

# argv: folder, checkpoint_seconds, milliseconds that each step takes longer
PROGRAM = """
import os, sys, time
from pathlib import Path
import torch
from vision_sae import checkpoint
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore
from vision_sae.train import Run, TrainConfig, train_all

os.fsync = lambda number: None  # a killed process loses nothing that the system has; disks are slow
torch.set_num_threads(1)
folder, wait = Path(sys.argv[1]), float(sys.argv[2])
x = torch.randn(500, 16, generator=torch.Generator().manual_seed(1))
config = TrainConfig(steps=60, batch_size=32, lr=1e-2, ema=0.9, validate_every=7, dead_after=64)

def log(step, numbers):
    print(step, flush=True)
    time.sleep(wait)

runs = [
    Run(SAE(SAEConfig.of(16, 64, family, k)), MemoryStore(x), config, folder / family, x[:50],
        on_log=log, on_finish=lambda sae, f=family: checkpoint.save(
            sae, folder / (f + "-done"), overwrite=True))
    for family, k in (("batchtopk", 2), ("panneal", None))
]
try:
    train_all(runs, log_every=1, checkpoint_seconds=-1)
except KeyboardInterrupt:
    sys.exit(3)
"""


def start(folder: Path, wait: float = 0.0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(folder), str(wait)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(folder: Path) -> list[int]:
    """The steps that were still to do."""
    process = start(folder)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return [int(line) for line in out.split()]


def results(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{family}.{name}": tensor
        for family in ("batchtopk", "panneal")
        for name, tensor in load_file(folder / f"{family}-done" / "sae.safetensors").items()
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    assert len(finish(folder)) == 120
    return results(folder)


def stop_after(process: "subprocess.Popen[str]", lines: int, how: signal.Signals) -> None:
    assert process.stdout
    for _ in range(lines):
        assert process.stdout.readline()
    process.send_signal(how)
    process.communicate(timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("moments", [(1,), (2, 3), (47, 30, 20), (110,)])
def test_kill_9_and_again(
    moments: tuple[int, ...], tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    """Two SAEs in one pass, killed one or more times, wherever that finds them."""
    for lines in moments:
        process = start(tmp_path, wait=0.002)
        stop_after(process, lines, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    done = finish(tmp_path)
    if moments != (1,):
        assert len(done) < 120  # it did go on, not begin again
    again = results(tmp_path)
    for name, tensor in uninterrupted.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.slow
def test_ctrl_c_saves_the_step_it_is_in(
    tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    process = start(tmp_path, wait=0.01)
    stop_after(process, 20, signal.SIGINT)
    assert process.returncode == 3
    assert (tmp_path / "batchtopk" / "training.safetensors").exists()
    assert not list(tmp_path.rglob("*.partial"))
    finish(tmp_path)
    again = results(tmp_path)
    for name, tensor in uninterrupted.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.slow
def test_a_kill_while_the_state_is_written_leaves_the_last_one(tmp_path: Path) -> None:
    """Half a file never has the name of a whole one."""
    process = start(tmp_path)
    assert process.stdout and process.stdout.readline()
    for _ in range(40):
        time.sleep(0.003)
        for state in tmp_path.rglob("training.safetensors"):
            process.send_signal(signal.SIGSTOP)
            assert load_file(state)["step"].ndim == 0
            process.send_signal(signal.SIGCONT)
    process.kill()
    process.communicate(timeout=600)
    assert finish(tmp_path)
