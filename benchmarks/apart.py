"""Run each contestant in a process of its own: its memory and its imports are then its own."""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from contestants import CONTESTANTS, Task

Result = dict[str, Any]


def parser(about: str | None, **defaults: float) -> argparse.ArgumentParser:
    """Options that all comparisons share."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--family", choices=["topk", "batchtopk"], default="topk")
    for name in ("d", "latents", "k", "batch", "steps"):
        made.add_argument(f"--{name}", type=int, default=int(defaults[name]))
    made.add_argument("--lr", type=float, default=defaults["lr"])
    made.add_argument("--only", nargs="*", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    made.add_argument(
        "--python", action="append", default=[], help="another environment to look for libraries in"
    )
    made.add_argument("--one", help=argparse.SUPPRESS)
    return made


def task_of(args: argparse.Namespace) -> Task:
    return Task(args.family, args.d, args.latents, args.k, args.batch, args.lr, args.steps)


def gigabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


Measure = Callable[[str, argparse.Namespace], Result]


def main(made: argparse.ArgumentParser, measure: Measure) -> None:
    """Measure one contestant (in a child), or start a child for each and print what they say."""
    args = made.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args)))
        return
    results = {}
    for name in args.only:
        found = _in_any(name, [sys.executable, *args.python])
        if found is None:
            print(f"{name}: not installed, or without this family; left out", file=sys.stderr)
            continue
        results[name] = found
        print(_line(name, found), flush=True)
    print(json.dumps({**vars(args), "threads": torch.get_num_threads(), "results": results}))


def _in_any(name: str, pythons: list[str]) -> Result | None:
    for python in pythons:
        command = [python, *sys.argv, "--one", name]
        child = subprocess.run(command, capture_output=True, text=True)
        if not child.returncode:
            found: Result = json.loads(child.stdout.splitlines()[-1])
            return found
        if "ImportError" not in child.stderr and "ModuleNotFoundError" not in child.stderr:
            raise SystemExit(f"{name} failed:\n{child.stderr}")
    return None


def _line(name: str, result: Result) -> str:
    shown = [f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()]
    return f"{name:22}" + "  ".join(shown)
