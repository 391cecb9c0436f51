"""EmojiCanvas-Unlearn: how well each method removes concepts from emoji-diffusion, at what cost.

python benchmarks/unlearn.py --quick         # 2 objects, 2 styles, few methods: about 5 minutes
python benchmarks/unlearn.py --out results/  # all concepts and methods: within 90 minutes

A run that was stopped goes on when the same command is given again.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from vision_sae.recipes.unlearn.benchmark import (
    QUICK,
    Attack,
    Counts,
    Plans,
    World,
    emoji_world,
    markdown,
    run,
    text,
    write_page,
)

QUICK_CONCEPTS = ("object:pizza", "object:frog", "style:neon", "style:sepia")


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="few concepts, pictures and methods")
    made.add_argument("--out", help="folder of the results; without it a temporary one")
    made.add_argument("--json", action="store_true", help="print the cells as JSON too")
    made.add_argument("--split", choices=["validation", "test"], default="test")
    made.add_argument("--concepts", nargs="*", help="object:pizza style:neon ...; all by default")
    made.add_argument("--methods", nargs="*", help="names; all by default")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    return made.parse_args()


def plans_of(quick: bool, concepts: list[str]) -> Plans:
    """Sets of 2, 5 and half of all; 1 to 6 in a row; attacks on two objects and two styles."""
    half = len(concepts) // 2
    if quick:
        return Plans(attacks=tuple(concepts[:1]), sizes=(2,), attack=Attack(steps=20, images=4))
    attacked = [c for c in QUICK_CONCEPTS if c in concepts] or concepts[:4]
    sizes = {size for size in (*range(1, 7), half) if 0 < size < len(concepts)}
    return Plans(attacks=tuple(attacked), sizes=tuple(sorted(sizes)))


def chosen_methods(args: argparse.Namespace, world: World) -> dict[str, Any]:
    from vision_sae.errors import UnknownName
    from vision_sae.recipes.unlearn.methods import all_methods

    found: dict[str, Any] = dict(all_methods(world.pipe, quick=args.quick))
    for name in args.methods or ():
        if name not in found:
            raise UnknownName("method", name, found)
    return {name: found[name] for name in args.methods} if args.methods else found


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    world = emoji_world()
    every = QUICK_CONCEPTS if args.quick else world.concepts
    concepts = list(args.concepts or every)
    out = Path(args.out or tempfile.mkdtemp(prefix="unlearn-"))
    cells = run(
        world, chosen_methods(args, world), concepts, args.split, out,
        counts=QUICK if args.quick else Counts(), plans=plans_of(args.quick, concepts),
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(text(cells))
    (out / "results.md").write_text(markdown(cells))
    print(f"page: {write_page(cells, out)}", file=sys.stderr)
    if args.json:
        bare = [{k: v for k, v in cell.items() if k != "sheet"} for cell in cells]
        print(json.dumps(bare))


if __name__ == "__main__":
    main()
