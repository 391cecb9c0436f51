"""What a step of nested training costs over one of plain TopK, at the same width.

python benchmarks/nested_step.py                                    # d 768, 6,144 latents: minutes
python benchmarks/nested_step.py --d 192 --latents 1536 --batch 512 --steps 200

Steps are taken in turns and their means compared, as nesting over prefixes draws one in every other
step; the first two of each are a warm-up. The largest of the ks is TopK's.
"""

import argparse
import json
import statistics
from functools import partial

import torch
from contestants import Task, ours
from train_step import timed

from vision_sae.recipes.matryoshka import nested_settings

KS = (4, 8, 16, 32)


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--d", type=int, default=768)
    made.add_argument("--latents", type=int, default=6144)
    made.add_argument("--batch", type=int, default=4096)
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    return made.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    task = Task("topk", args.d, args.latents, max(KS), args.batch, 2e-3, args.steps)
    rows = torch.randn(task.batch, task.d, generator=torch.Generator().manual_seed(0))
    nests = {"TopK": None} | {
        f"{kind}{'' if own else ', shared'}": nested_settings(kind, KS, own=own)["nest"]
        for kind in ("k", "both")
        for own in (True, False)
    }
    steps = {name: partial(ours(task, nest).step, rows) for name, nest in nests.items()}
    taken = [{name: timed(s) for name, s in steps.items()} for _ in range(args.steps + 2)][2:]
    means = {name: statistics.fmean(times[name] for times in taken) for name in steps}
    for name, mean in means.items():
        print(f"{name:14} {mean:.4f} s a step, {mean / means['TopK']:.2f} of TopK's")
    print(json.dumps({**vars(args), "torch": torch.__version__, "means": means}))


if __name__ == "__main__":
    main()
