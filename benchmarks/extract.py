"""Extraction against the bare forward pass of the same model, as ratios of one run.

python benchmarks/extract.py            # emoji-clip and an open_clip ViT-B-32 of random weights
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vision_sae.adapter import Adapter, load_adapter
from vision_sae.data import open_data
from vision_sae.data.decode import decoded
from vision_sae.extract import extract
from vision_sae.hooks import inference

CASES = [
    ("emoji-clip", "visual.transformer.resblocks.5", 731),
    ("open_clip:ViT-B-32/random", "visual.transformer.resblocks.11", 96),
]
BATCH = 64


class Slice:
    """The first images of a source, decoded beforehand when asked."""

    def __init__(self, spec: str, images: int, *, in_memory: bool) -> None:
        from vision_sae.data import Item

        source = open_data(spec)
        self.name, self.images = source.name, images
        items = [item for item, _ in zip(source.items(), range(images), strict=False)]
        if in_memory:
            held = [item.image for item, _ in zip(decoded(source), range(images), strict=False)]
            items = [Item(i.key, i.about, lambda h=h: h) for i, h in zip(items, held, strict=True)]
        self._items = items

    def __len__(self) -> int:
        return self.images

    def items(self, start: int = 0) -> Any:
        return iter(self._items[start:])


def seconds(work: Callable[[], object], runs: int = 3) -> float:
    """The best of a few runs: the least disturbed one."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def bare_forward(adapter: Adapter, source: Slice) -> Callable[[], None]:
    pictures = [item.open() for item in source.items()]
    batches = [adapter.prepare(pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH)]

    def work() -> None:
        with inference(adapter.model):
            for batch in batches:
                adapter.run(batch)

    return work


def measure(model: str, site: str, images: int) -> dict[str, Any]:
    adapter = load_adapter(model)
    memory = Slice("emoji-canvas:validation", images, in_memory=True)
    disk = Slice("emoji-canvas:validation", images, in_memory=False)
    with tempfile.TemporaryDirectory() as folder:
        bare = seconds(bare_forward(adapter, memory))
        from_memory = seconds(
            lambda: extract(
                adapter, memory, site, Path(folder) / "a", batch_size=BATCH, overwrite=True
            )
        )
        from_disk = seconds(
            lambda: extract(
                adapter, disk, site, Path(folder) / "b", batch_size=BATCH, overwrite=True
            )
        )
    return {
        "model": model,
        "images/s bare forward": images / bare,
        "extract / bare, images decoded before": bare / from_memory,
        "extract / bare, decoding included": bare / from_disk,
    }


def main() -> None:
    rows = [measure(*case) for case in CASES]
    for row in rows:
        print(
            "  ".join(f"{k}: {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in row.items())
        )
    print(
        json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows})
    )


if __name__ == "__main__":
    main()
