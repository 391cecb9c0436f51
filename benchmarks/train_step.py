"""A whole training step against the encoder's matrix product alone, ours and other libraries'.

python benchmarks/train_step.py                            # d 768, 8192 latents, k 32, batch 4096
python benchmarks/train_step.py --family batchtopk
python benchmarks/train_step.py --latents 65536 --only vision_sae "vision_sae screened"
python benchmarks/train_step.py --python other/bin/python  # libraries installed elsewhere too

Each contestant runs in a process of its own; product and step are timed in turns in that process,
and the medians are compared. Memory is the most that the process has held.
"""

import argparse
import time
from collections.abc import Callable

import torch
from apart import Result, gigabytes, main, parser, task_of
from contestants import CONTESTANTS, version


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(name: str, args: argparse.Namespace) -> Result:
    task = task_of(args)
    rows = torch.randn(task.batch, task.d, generator=torch.Generator().manual_seed(0))
    weight = task.atoms()
    contestant = CONTESTANTS[name](task)
    product: list[float] = []
    step: list[float] = []
    for _ in range(args.steps + 2):  # the first two are a warm-up
        with torch.no_grad():
            product.append(timed(lambda: rows @ weight.T))
        step.append(timed(lambda: contestant.step(rows)))
    alone, whole = (sorted(times[2:])[args.steps // 2] for times in (product, step))
    return {
        "product s": alone,
        "step s": whole,
        "step / product": whole / alone,
        "peak GB": gigabytes(),
        "version": version(name),
    }


if __name__ == "__main__":
    main(
        parser(__doc__, d=768, latents=8192, k=32, batch=4096, steps=7, lr=2e-4),
        measure,
    )
