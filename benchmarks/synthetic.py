"""Which families find planted features? Equal samples and equal L0, on worlds with ground truth.

python benchmarks/synthetic.py --quick             # one or two minutes on two cores
python benchmarks/synthetic.py                     # d 64, 256 features, trees: 15 minutes
python benchmarks/synthetic.py --full --device cuda    # the size of SynthSAEBench-16k
python benchmarks/synthetic.py --full --steps 1000 --lr 1e-3 --keep-rows --eval-rows 8192  # short
python benchmarks/synthetic.py --peers --features 512  # SAELens too, on the same rows (saelens.py)

Sparsity coefficients are searched on a world of their own for the target L0, and never for a score;
what is reported is the mean over other worlds. MCC, F1 (over latents) and uniqueness are SAELens'
definitions, see vision_sae.measures.recovery.Recovery. --full has the sizes, frequencies, trees and
correlations of SynthSAEBench-16k, but not its orthogonalised directions nor children that scale
with their parents: numbers are near its table, not comparable to the third digit.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, islice
from multiprocessing import get_context
from typing import Any

import torch
from saelens import PEERS, Peer
from torch import Tensor

from vision_sae.measures.metrics import evaluate
from vision_sae.measures.recovery import recovery
from vision_sae.sae import SAE, SAEConfig
from vision_sae.synthetic import Synthetic, SyntheticConfig
from vision_sae.train import TrainConfig, train

QUICK = {
    "d": 32, "features": 96, "latents": 96, "l0": 4, "roots": 0, "correlation": 0.0,
    "steps": 1000, "batch": 256, "lr": 5e-3, "eval_rows": 8192, "tuning": 5,
}  # fmt: skip
FULL = {
    "d": 768, "features": 16384, "latents": 4096, "l0": 25, "world_l0": 34.0, "roots": 128,
    "branching": 4, "depth": 3, "exclusive": True, "correlation": 0.25, "bias": 0.22,
    "steps": 195_000, "batch": 1024, "lr": 3e-4, "eval_rows": 2**19, "workers": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A family with its options; with a `start`, its coefficient is tuned; else k = L0."""

    family: str
    options: dict[str, Any] = field(default_factory=dict)
    start: float | None = None
    nested: bool = False  # Matryoshka, with the shares of --nest
    library: str = "ours"

    def trained(
        self, args: argparse.Namespace, world: Synthetic, coefficient: float | None, seed: int
    ) -> SAE:
        sae = self.untrained(args, coefficient, seed)
        steps = TrainConfig(steps=args.steps, batch_size=args.batch, lr=args.lr, seed=seed)
        return train(sae, world, steps)

    def untrained(self, args: argparse.Namespace, coefficient: float | None, seed: int) -> SAE:
        return SAE(self.config(args, coefficient), seed=seed).to(args.device)

    def config(self, args: argparse.Namespace, coefficient: float | None) -> SAEConfig:
        options, k = self.options, args.l0
        if self.nested:
            options = {**options, "nest": {"kind": "prefix", "shares": args.nest}}
        if self.start:
            options, k = {**options, "coefficient": coefficient}, None
        elif self.family == "groupmax":  # k divides the latents
            k = min(divisors(args.latents), key=lambda n: abs(n - args.l0))
        return SAEConfig.of(args.d, args.latents, self.family, k, **options)


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


CANDIDATES = {
    "topk": Candidate("topk"),
    "abstopk": Candidate("abstopk"),
    "groupmax": Candidate("groupmax"),
    "batchtopk": Candidate("batchtopk"),
    "batchtopk, unit atoms": Candidate("batchtopk", {"atoms": "unit"}),
    "matryoshka": Candidate("batchtopk", nested=True),
    "matryoshka, unit atoms": Candidate("batchtopk", {"atoms": "unit"}, nested=True),
    "mp": Candidate("mp"),
    "relu": Candidate("relu", start=4),
    "relu, free atoms": Candidate("relu", {"atoms": "free"}, start=4),
    "panneal": Candidate("panneal", start=3),
    "gated": Candidate("gated", start=4),
    "jumprelu": Candidate("jumprelu", start=0.4),
}
EVERYONE: dict[str, Candidate | Peer] = {**CANDIDATES, **PEERS}


@dataclass(frozen=True)
class Run:
    """One SAE on one world."""

    name: str
    seed: int
    args: argparse.Namespace
    coefficient: float | None = None
    train: bool = True

    def __call__(self) -> dict[str, float]:
        a, world = self.args, world_of(self.args, self.seed)
        started = time.perf_counter()
        if self.train:
            sae = EVERYONE[self.name].trained(a, world, self.coefficient, self.seed)
        else:
            sae = CANDIDATES[self.name].untrained(a, self.coefficient, self.seed)
        seconds = time.perf_counter() - started
        draws = world.held_out(1024, max(1, a.eval_rows // 1024))
        measured = evaluate(sae, (draw.x for draw in draws)).as_dict()
        found = recovery(sae, world, rows=a.eval_rows).as_dict()
        return {**measured, **found, "seconds": seconds}


class Kept(Synthetic):
    """A world that makes each batch once; at true size that takes longer than a step on it."""

    def __init__(self, config: SyntheticConfig, *, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device=device)
        self.kept: dict[tuple[int, int, int], Tensor] = {}

    def batches(
        self, size: int, *, seed: int = 0, start: int = 0, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Tensor]:
        for i in count(start):
            if (size, seed, i) not in self.kept:
                self.kept[size, seed, i] = next(super().batches(size, seed=seed, start=i))
            yield self.kept[size, seed, i][part[0] :: part[1]]


def world_of(args: argparse.Namespace, seed: int) -> Synthetic:
    names = ("d", "features", "zipf", "roots", "branching", "depth", "exclusive", "correlation")
    settings = {name: getattr(args, name) for name in (*names, "bias")}
    l0 = args.world_l0 or float(args.l0)
    make = kept_world if args.keep_rows else Synthetic
    return make(SyntheticConfig(**settings, l0=l0, seed=seed), device=args.device)


kept_world = lru_cache(maxsize=1)(Kept)


def tuned(name: str, args: argparse.Namespace) -> float | None:
    """The coefficient whose L0 came nearest to the target on the tuning world."""
    start = EVERYONE[name].start
    if not start:
        return None
    seen: dict[float, float] = {}  # log coefficient -> log (L0 / target)
    guess = math.log(start)
    for _ in range(args.tuning):
        run = Run(name, args.tuning_seed, args, math.exp(guess))
        seen[guess] = math.log(max(run()["l0"], 0.01) / args.l0)
        if abs(seen[guess]) < 0.02:
            break
        guess = next_guess(seen)
    return math.exp(min(seen, key=lambda c: abs(seen[c])))


def next_guess(seen: dict[float, float]) -> float:
    """Between the nearest on either side, by interpolation; a factor of 2 on while on one side."""
    above = [c for c, excess in seen.items() if excess > 0]
    below = [c for c, excess in seen.items() if excess <= 0]
    if not below:
        return max(above) + math.log(2)
    if not above:
        return min(below) - math.log(2)
    low, high = max(above), min(below)
    share = seen[low] / (seen[low] - seen[high])
    return low + (high - low) * min(0.75, max(0.25, share))


def mean_and_spread(results: list[dict[str, float]]) -> dict[str, float]:
    table = {}
    for key in results[0]:
        values = torch.tensor([result[key] for result in results], dtype=torch.float64)
        table[key] = float(values.mean())
        table[f"{key} sd"] = float(values.std()) if len(values) > 1 else 0.0
    return table


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row per candidate, as soon as it is known: the mean over the worlds."""
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    with mapper(args.workers) as apply:
        found = apply(tuned, args.families, [args] * len(args.families))
        coefficients = dict(zip(args.families, found, strict=True))
        runs = [
            Run(name, seed, args, coefficients[name]) for name in args.families for seed in seeds
        ]
        runs += [Run("topk", seed, args, train=False) for seed in seeds]
        results = iter(apply(call, runs))
        for name in [*args.families, "topk, untrained"]:
            mean = mean_and_spread(list(islice(results, args.seeds)))
            library = EVERYONE[name].library if name in EVERYONE else "ours"
            knob = coefficients.get(name)
            yield {"family": name, "library": library, "coefficient": knob, **mean}


def call(run: Run) -> dict[str, float]:
    return run()


class mapper:
    """map over processes of one thread each, or in this process."""

    def __init__(self, workers: int) -> None:
        self.pool = None
        if workers > 1:
            self.pool = ProcessPoolExecutor(
                workers, get_context("spawn"), torch.set_num_threads, (1,)
            )

    def __enter__(self) -> Callable[..., Iterable[Any]]:
        return self.pool.map if self.pool else map

    def __exit__(self, *error: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


def show(row: dict[str, Any]) -> None:
    columns = {"L0": "l0", "FVU": "fvu", "MCC": "mcc", "F1": "f1", "unique": "uniqueness",
               "F1 features": "feature_f1", "recovered": "recovered", "dead": "dead"}  # fmt: skip
    numbers = "  ".join(f"{title} {row[key]:.3f}" for title, key in columns.items())
    knob = f"{row['coefficient']:.3g}" if row["coefficient"] else "-"
    who = f"{row['family'].removeprefix('saelens '):16} {row['library']:8}"
    print(f"{who} coefficient {knob:>7}  {numbers}  {row['seconds']:.1f} s", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--families", nargs="+", choices=EVERYONE)
    parser.add_argument("--peers", action="store_true", help="SAELens' families too")
    for name, default in {
        "d": 64, "features": 256, "latents": 256, "l0": 8, "roots": 8, "branching": 3, "depth": 2,
        "steps": 3000, "batch": 256, "eval_rows": 2**15, "seeds": 3, "first_seed": 0,
        "tuning_seed": 1000, "tuning": 6, "workers": 2,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    for name, number in {"zipf": 0.5, "correlation": 0.1, "bias": 0.0, "lr": 3e-3}.items():
        parser.add_argument(f"--{name}", type=float, default=number)
    parser.add_argument("--world-l0", type=float, help="true L0, where it is not --l0")
    parser.add_argument("--nest", nargs="+", type=float, default=[1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
    parser.add_argument("--exclusive", action="store_true")
    parser.add_argument(
        "--keep-rows", action="store_true",
        help="draw the rows of a world once: steps * batch * d * 4 bytes of memory",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu")
    chosen, _ = parser.parse_known_args()
    parser.set_defaults(**(QUICK if chosen.quick else FULL if chosen.full else {}))
    args = parser.parse_args()
    args.families = args.families or [*CANDIDATES, *(PEERS if args.peers else ())]
    return args


def main() -> None:
    args, rows = arguments(), []
    started = time.perf_counter()
    for row in measure(args):
        show(row)
        rows.append(row)
    setting = vars(args) | {"torch": torch.__version__, "seconds": time.perf_counter() - started}
    print(json.dumps({**setting, "rows": rows}))


if __name__ == "__main__":
    main()
