"""Train emoji-judge, which reads object and style, on real augmented pictures only.

  python -m vision_sae.assets.builders.emoji_judge --out assets/emoji-judge --work runs/judge

A few minutes on two CPU cores; run the same command again to resume. `--without twemoji` leaves a
vendor's drawings out of the training, and the test then says how well those are read.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.assets.builders.emoji_diffusion import (
    LOOK_NAMES,
    STENCILS,
    VENDORS,
    Run,
    drawings,
)  # fmt: skip
from vision_sae.assets.judge import CONFIG, WEIGHTS, Judge
from vision_sae.assets.painting import paint
from vision_sae.assets.vocabulary import OBJECTS
from vision_sae.files import write_json, write_tensors

NET: dict[str, Any] = {
    "timm": "resnet10t",
    "arguments": {"channels": [32, 64, 96, 128]},
    "objects": OBJECTS,
    "styles": [look or "plain" for look in LOOK_NAMES],
}
BATCH, LR, STEPS = 144, 3e-3, 700  # as the embedded one was trained
Drawn = tuple[Tensor, Tensor, Tensor]  # pictures, objects, styles


def batch(vendors: tuple[str, ...], count: int, generator: torch.Generator) -> Drawn:
    """Pictures [n 3 32 32] of random objects, the same number of each look, with their labels."""
    each, pictures, who = count // len(LOOK_NAMES), [], []
    for look in LOOK_NAMES:
        some = STENCILS if look == "stencil" else vendors
        objects = torch.randint(len(OBJECTS), (each,), generator=generator)
        by = torch.randint(len(some), (each,), generator=generator).tolist()
        rgba = [drawings()[OBJECTS[o], some[v]] for o, v in zip(objects.tolist(), by, strict=True)]
        pictures.append(paint(torch.stack(rgba), look, generator))
        who.append(objects)
    style = torch.arange(len(LOOK_NAMES)).repeat_interleave(each)
    return torch.cat(pictures), torch.cat(who), style


def disturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """A half of the pictures blurred, all a little off in contrast, and with some noise."""
    n = len(x)
    u = torch.rand(4, n, 1, 1, 1, generator=generator)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, (u[0] - 0.5).clamp(min=0) * 2)
    x = (x - 0.5) * (0.85 + 0.3 * u[1]) + 0.5 + (u[2] - 0.5) * 0.1
    return (x + 0.06 * u[3] * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def train(path: Path, vendors: tuple[str, ...], steps: int, seed: int) -> Judge:
    judge = Judge(NET)
    run = Run(judge, path, LR, steps)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        pictures, objects, styles = batch(vendors, BATCH, generator)
        with torch.autocast("cpu", torch.bfloat16):
            told = judge.train()(disturbed(pictures, generator))
        loss = F.cross_entropy(told.object.float(), objects, label_smoothing=0.05)
        return loss + F.cross_entropy(told.style.float(), styles, label_smoothing=0.05)

    run.go(loss_of)
    averaged: Judge = run.averaged()
    return averaged


@torch.no_grad()
def accuracy(judge: Judge, vendors: tuple[str, ...], seed: int, count: int = 3_600) -> Any:
    """Object and style accuracy on new augmentations."""
    generator, right = torch.Generator().manual_seed(seed), torch.zeros(2)
    for _ in range(count // 360):
        pictures, objects, styles = batch(vendors, 360, generator)
        told = judge(pictures)
        right[0] += (told.object.argmax(1) == objects).float().sum()
        right[1] += (told.style.argmax(1) == styles).float().sum()
    return {"object": float(right[0]) / count, "style": float(right[1]) / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", choices=VENDORS, help="a vendor that is only tested on")
    args = parser.parse_args()
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    vendors = tuple(v for v in VENDORS if v != args.without)
    judge = train(args.work / "judge.safetensors", vendors, args.steps, args.seed)
    tested = {"test": accuracy(judge, vendors, 10**9 + args.seed)}
    if args.without:
        tested[args.without] = accuracy(judge, (args.without,), 10**9 + args.seed)
    print(json.dumps(tested))
    state = {k: v.half() for k, v in judge.net.state_dict().items() if v.is_floating_point()}
    write_tensors(args.out / WEIGHTS, state)
    write_json(args.out / CONFIG, NET | {"accuracy": tested})


if __name__ == "__main__":
    main()
