"""Extraction against the bare forward pass of the same model, as ratios of one run.

python benchmarks/extract.py    # emoji-clip and an open_clip ViT-B-32 of random weights: 15 minutes
python benchmarks/extract.py --models emoji-clip --rounds 5 --threads 1

Each ratio is of the times of all rounds together, in which all are timed one after the other, from
the first image on; behind it the least and the largest of one round. What comes before the first
image (finding the site, hashing the weights, the folder) is the start, in seconds. CPU is the time
of all threads: what extraction adds to a forward pass, whatever else the machine does. Memory is
the peak of a process of its own, with and without ten times the images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vision_sae.data import Item, open_data
from vision_sae.data.decode import decoded
from vision_sae.data.indexed import IndexedSource
from vision_sae.extract import activations_of, extract, read_of
from vision_sae.model.adapter import Adapter, load_adapter
from vision_sae.model.hooks import inference

BLOCK = "visual.transformer.resblocks"
CASES = {  # of each model: a block in the middle, the last one, images, batch
    "emoji-clip": (2, 5, 5_120, 256),
    "open_clip:ViT-B-32/random": (5, 11, 256, 32),
}
TOY = "toy"  # whose extraction shows memory
ROUNDS, FEW = 7, 3  # of the bare pass and of extraction, of the rest
MOST = ("bare", "memory")


class Slice(IndexedSource):
    """The first images of a source, decoded beforehand when asked."""

    def __init__(self, spec: str, images: int, *, in_memory: bool) -> None:
        source = open_data(spec)
        self.name, self.images = source.name, images
        items = [item for item, _ in zip(source.items(), range(images), strict=False)]
        if in_memory:
            held = [item.image for item, _ in zip(decoded(source), range(images), strict=False)]
            items = [Item(i.key, i.about, opener(h)) for i, h in zip(items, held, strict=True)]
        self._items = items

    def __len__(self) -> int:
        return self.images

    def item(self, i: int) -> Item:
        return self._items[i]


def opener(image: Any) -> Callable[[], Any]:
    return lambda: image


class Took(NamedTuple):
    """Seconds by the clock and of all threads, and those before the first image."""

    wall: float
    cpu: float
    start: float = 0.0


class Ratio(NamedTuple):
    """Of all rounds together, the least and the largest of one."""

    all: float
    least: float
    largest: float

    def __str__(self) -> str:
        return f"{self.all:.3f} ({self.least:.2f} to {self.largest:.2f})"


def now() -> Took:
    return Took(time.perf_counter(), time.process_time())


def timed(work: Callable[[], Took | None]) -> Took:
    """Of some work, from where it says that its first image came, or from its beginning."""
    called = now()
    first = work() or called
    done = now()
    return Took(done.wall - first.wall, done.cpu - first.cpu, first.wall - called.wall)


def prepared(adapter: Adapter, source: Slice, batch: int) -> list[Any]:
    pictures = [item.open() for item in source.items()]
    return [adapter.prepare(pictures[i : i + batch]) for i in range(0, len(pictures), batch)]


def bare_forward(adapter: Adapter, batches: list[Any]) -> Callable[[], None]:
    def work() -> None:
        with inference(adapter.model):
            for some in batches:
                adapter.run(some)

    return work


def bare_loop(adapter: Adapter, source: Slice, batch: int) -> Callable[[], None]:
    """What one would write by hand: prepare each batch, run it, keep nothing."""
    pictures = [item.open() for item in source.items()]

    def work() -> None:
        with inference(adapter.model):
            for i in range(0, len(pictures), batch):
                adapter.run(adapter.prepare(pictures[i : i + batch]))

    return work


def read_only(adapter: Adapter, source: Slice, site: str, batches: list[Any]) -> Callable[[], None]:
    """The pass up to a site, on images that are prepared already; nothing is stored."""
    reading = read_of(adapter, source, [site], "all", "float32")

    def work() -> None:
        for some in batches:
            activations_of(adapter, some, reading)

    return work


def measure(model: str, rounds: int, images: int | None) -> dict[str, Any]:
    case = CASES[model]
    images, batch = images or case[2], case[3]
    middle, last = (f"{BLOCK}.{number}" for number in case[:2])
    adapter = load_adapter(model)
    held = Slice("emoji-canvas:train", images, in_memory=True)
    disk = Slice("emoji-canvas:train", images, in_memory=False)
    batches = prepared(adapter, held, batch)
    with tempfile.TemporaryDirectory() as folder:

        def stored(source: Slice) -> Callable[[], Took | None]:
            def work() -> Took:
                told: list[Took] = []
                out, tell = Path(folder) / "acts", lambda n: told.append(now())
                extract(
                    adapter, source, last, out, batch_size=batch, overwrite=True, on_images=tell
                )
                return told[0]

            return work

        works: dict[str, Callable[[], Took | None]] = {
            "bare": bare_forward(adapter, batches),
            "memory": stored(held),  # next to what it is compared with
            "loop": bare_loop(adapter, held, batch),
            "half": read_only(adapter, held, middle, batches),
            "read": read_only(adapter, held, last, batches),
            "disk": stored(disk),
        }
        times = [
            {name: timed(work) for name, work in works.items() if i < FEW or name in MOST}
            for i in range(rounds)
        ]

    def ratio(one: str, other: str, what: str = "wall") -> Ratio:
        both = [t for t in times if one in t and other in t]
        pairs = [(getattr(t[one], what), getattr(t[other], what)) for t in both]
        return Ratio(
            sum(a for a, _ in pairs) / sum(b for _, b in pairs),
            min(a / b for a, b in pairs),
            max(a / b for a, b in pairs),
        )

    return {
        "model": model,
        "images/s bare forward": images / min(t["bare"].wall for t in times),
        "start, seconds": min(t["memory"].start for t in times),
        "extract / bare, images decoded before": ratio("bare", "memory"),
        "extract / bare with preprocessing": ratio("loop", "memory"),
        "extract / bare, decoding included": ratio("bare", "disk"),
        "CPU of bare / extract": ratio("bare", "memory", "cpu"),
        "time to half depth / bare": ratio("half", "bare"),
        "time with store / without": ratio("memory", "read"),
    }


def peak_memory(images: int) -> float:
    """MB, of a process that extracts so many images of the toy model."""
    code = (
        "import sys, tempfile; sys.path.insert(0, sys.argv[1]); import extract as e;"
        "from vision_sae.model.adapter import load_adapter;"
        "source = e.Slice('emoji-canvas', 100, in_memory=False);"
        f"source._items = source._items * {images // 100}; source.images = {images};"
        "e.extract(load_adapter('toy'), source, 'blocks.0', tempfile.mkdtemp(), "
        "shard_bytes=2**20, batch_size=64);"
        "print(next(int(line.split()[1]) / 1024 for line in open('/proc/self/status')"
        " if line.startswith('VmHWM')))"  # ru_maxrss would be that of this process too
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True)
    return float(done.stdout)


def memory() -> dict[str, Any]:
    few, many = peak_memory(1000), peak_memory(10_000)
    return {"model": TOY, "peak MB, 1,000 images": few, "peak MB, 10,000 images": many}


def show(row: dict[str, Any]) -> None:
    told = (f"{k}: {v:.3g}" if isinstance(v, float) else f"{k}: {v}" for k, v in row.items())
    print("  ".join(told), flush=True)


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--models", nargs="*", default=[*CASES, TOY], choices=[*CASES, TOY])
    made.add_argument("--rounds", type=int, default=ROUNDS)
    made.add_argument("--images", type=int, help="of each model; default: enough to time")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    return made.parse_args()


def main() -> None:
    args, rows = options(), []
    torch.set_num_threads(args.threads)
    for model in args.models:
        row = memory() if model == TOY else measure(model, args.rounds, args.images)
        show(row)
        rows.append(row)
    print(json.dumps({"torch": torch.__version__, "threads": args.threads, "rows": rows}))


if __name__ == "__main__":
    main()
