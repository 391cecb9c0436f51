"""The memory and time of training steps of a dictionary far larger than its batch's codes.

python benchmarks/memory.py                        # 1,048,576 latents, d 256, batch 1024: 9 GB
python benchmarks/memory.py --latents 131072       # for a smaller machine

Plain Adam holds weights, gradients and two moments; optimizer="rows" holds the weights and one
moment, and gradients of the rows that are active. Each is run in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time

import torch
from apart import gigabytes

from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, Trainer


def measure(args: argparse.Namespace) -> dict[str, float | str]:
    rows = torch.randn(args.batch * args.steps, args.d)
    sae = SAE(SAEConfig.of(args.d, args.latents, "topk", args.k))
    config = TrainConfig(batch_size=args.batch, optimizer=args.one)
    trainer = Trainer(sae, MemoryStore(rows), config)
    trainer.start()
    started = time.perf_counter()
    for batch in rows.split(args.batch):
        trainer.train_step(batch)
        trainer.step += 1
    seconds = (time.perf_counter() - started) / args.steps
    return {"optimizer": args.one, "s/step": seconds, "peak GB": gigabytes()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("latents", 2**20), ("d", 256), ("k", 32), ("batch", 1024), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--one", choices=["adam", "rows"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args)))
        return
    for optimizer in ("adam", "rows"):
        subprocess.run([sys.executable, *sys.argv, "--one", optimizer], check=True)


if __name__ == "__main__":
    main()
