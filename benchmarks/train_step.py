"""A whole training step against the encoder's matrix product alone, in one run.

python benchmarks/train_step.py         # d 768, 8192 latents, k 32, batch 4096
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, Trainer


def seconds(work: Callable[[], object], runs: int) -> float:
    """The median of some runs after a warm-up."""
    work()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times)[runs // 2]


def measure(family: str, d: int, s: int, k: int, n: int, runs: int) -> dict[str, float | str]:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    sae = SAE(SAEConfig.of(d, s, family, k))
    trainer = Trainer(sae, MemoryStore(rows), TrainConfig())
    trainer.start()

    def product() -> torch.Tensor:
        with torch.no_grad():
            return rows @ sae.W_enc.T

    alone = seconds(product, runs)
    step = seconds(lambda: trainer.train_step(rows), runs)
    return {"family": family, "product s": alone, "step s": step, "step / product": step / alone}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--latents", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    table = [
        measure(family, args.d, args.latents, args.k, args.batch, args.runs)
        for family in ("topk", "batchtopk")
    ]
    for row in table:
        print(
            "  ".join(
                f"{k}: {v:.3f}" if isinstance(v, float) else f"{v:10}" for k, v in row.items()
            )
        )
    setting = vars(args) | {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({**setting, "rows": table}))


if __name__ == "__main__":
    main()
