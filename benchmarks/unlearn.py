"""EmojiCanvas-Unlearn: how well each method removes concepts from emoji-diffusion, at what cost.

python benchmarks/unlearn.py --quick         # 2 objects, 2 styles, few methods: about 4 minutes
python benchmarks/unlearn.py --out results/  # all concepts and methods: 87 minutes

A run that was stopped goes on when the same command is given again.
"""

import argparse
import json
import sys
import tempfile

import torch

from vision_sae.memory import keep_freed
from vision_sae.recipes.unlearn.benchmark import evaluate, text, without_sheets


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="few concepts, pictures and methods")
    made.add_argument("--out", help="folder of the results; without it a temporary one")
    made.add_argument("--json", action="store_true", help="print the cells as JSON too")
    made.add_argument("--split", choices=["validation", "test"], default="test")
    made.add_argument("--concepts", nargs="*", default=(), help="object:pizza ...; default: all")
    made.add_argument("--methods", nargs="*", default=(), help="names; default: all")
    made.add_argument("--sae-seeds", nargs="*", type=int, default=(), help="default: 0 1 2")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    return made.parse_args()


def main() -> None:
    args = options()
    keep_freed()
    torch.set_num_threads(args.threads)
    out = args.out or tempfile.mkdtemp(prefix="unlearn-")
    cells = evaluate(
        out, quick=args.quick, concepts=args.concepts, methods=args.methods, split=args.split,
        sae_seeds=args.sae_seeds, tell=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(text(cells))
    print(f"page: {out}/index.html", file=sys.stderr)
    if args.json:
        print(json.dumps(without_sheets(cells)))


if __name__ == "__main__":
    main()
