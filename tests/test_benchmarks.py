"""Every benchmark that can be made small runs to its end; the others have large models or hours."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
OURS = "--only vision_sae"
SMALL = {
    "bottleneck_solver": "--rows 400 --latents 64 --strengths 3",
    "extract": "--models emoji-clip --images 64 --rounds 1",
    "killed": "--kills 1 --images 60",
    "memory": "--latents 256 --d 16 --k 4 --batch 32 --steps 2",
    "nested_step": "--d 16 --latents 128 --batch 32 --steps 2",
    "search": "--rows 2000",
    "store": "--gigabytes 0.01 --steps 1",
    "synthetic": "--families topk --steps 5 --seeds 1 --workers 1 --eval-rows 1024",
    "time_to_fvu": f"--d 16 --latents 64 --k 4 --batch 64 --steps 5 {OURS}",
    "train_step": f"--d 16 --latents 64 --k 4 --batch 64 --steps 2 {OURS}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name: str) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *SMALL[name].split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode and done.stdout.strip(), done.stderr
