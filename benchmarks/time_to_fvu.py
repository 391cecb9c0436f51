"""Training time until held-out rows are reconstructed to a given FVU, ours and other libraries'.

python benchmarks/time_to_fvu.py                            # d 256, 4096 latents, k 16, batch 2048
python benchmarks/time_to_fvu.py --python other/bin/python  # libraries installed elsewhere too

Rows are sparse sums of planted directions (seed 0), made before the clock starts; the clock runs
while steps do, not while FVU is measured. A library that never gets there has no time.
"""

import argparse
import time

import torch
from apart import Result, gigabytes, main, parser, task_of
from contestants import CONTESTANTS, version

from vision_sae.synthetic import Synthetic, SyntheticConfig

EVERY = 10  # steps between looks at the FVU


def measure(name: str, args: argparse.Namespace) -> Result:
    task = task_of(args)
    world = Synthetic(SyntheticConfig(d=task.d, features=4 * task.d, l0=task.k, seed=0))
    scale = task.d**0.5 / float(world.sample(4096, seed=1).norm(dim=1).mean())
    stream = world.batches(task.batch, seed=0)
    batches = [next(stream) * scale for _ in range(args.distinct)]
    held_out = next(iter(world.held_out(2048, 1))).x * scale
    contestant = CONTESTANTS[name](task)
    spent, reached, fvu, steps = 0.0, None, 1.0, 0
    while steps < task.steps:
        started = time.perf_counter()
        for _ in range(EVERY):
            contestant.step(batches[steps % len(batches)])
            steps += 1
        spent += time.perf_counter() - started
        fvu = unexplained(held_out, contestant.reconstruct(held_out))
        if reached is None and fvu <= args.fvu:
            reached = (spent, steps)
            break
    return {
        f"seconds to FVU {args.fvu}": reached[0] if reached else None,
        "steps": steps,
        "s/step": spent / steps,
        "FVU": fvu,
        "peak GB": gigabytes(),
        "version": version(name),
    }


def unexplained(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


if __name__ == "__main__":
    made = parser(__doc__, d=256, latents=4096, k=16, batch=2048, steps=400, lr=1e-3)
    made.add_argument("--fvu", type=float, default=0.6)
    made.add_argument("--distinct", type=int, default=50, help="batches before they come again")
    main(made, measure)
