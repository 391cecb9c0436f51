"""Rows per second of a globally shuffled store, against what training an SAE reads.

python benchmarks/store.py                 # stores of about 1 GB, d 768, float16 and float32
python benchmarks/store.py --gigabytes 4 --folder acts_for_benchmark

Each store is read `cold`, right after its files were dropped from the page cache where the system
allows it, without checksums; then `warm`, the same rows again; and as it is by default, a new Store
whose first batch verifies all shards. A training step (TopK, 8192 latents, k 32, batches of 4096)
is timed in the same process.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from contestants import CONTESTANTS, Task

from vision_sae.provenance import Provenance
from vision_sae.store import Row, Store, StoreIndex, StoreWriter
from vision_sae.store.order import shuffled

D, TOKENS, BATCH = 768, 197, 4096


def write(folder: Path, dtype: Any, gigabytes: float) -> int:
    """Random activations, as many images as fill so much; returns their number."""
    index = StoreIndex(
        provenance=Provenance(model="none", fingerprint="0", site="s", tokens="all", data="none"),
        dtype=dtype, width=D, tokens_per_image=TOKENS, prefix_tokens=1, grid=(14, 14),
    )  # fmt: skip
    images = int(gigabytes * 1e9 / (TOKENS * D * getattr(torch, dtype).itemsize))
    writer = StoreWriter(folder, index)
    for start in range(0, images, 64):
        rows = [Row(i, f"{i}", {}) for i in range(start, min(start + 64, images))]
        writer.add(torch.randn(len(rows), TOKENS, D), rows)
    writer.finish()
    return images


def drop_from_cache(folder: Path) -> None:
    """Ask the system to read these files from the disk again; they must not be mapped."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rows_per_second(batches: Iterator[torch.Tensor], count: int) -> float:
    started = time.perf_counter()
    rows = sum(len(batch) for batch in islice(batches, count))
    return rows / (time.perf_counter() - started)


def seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def step_seconds(steps: int) -> float:
    """The median of a few training steps, after a warm-up."""
    step = CONTESTANTS["vision_sae"](Task("topk", D, 8192, 32, BATCH, 2e-4, steps + 1)).step
    rows = torch.randn(BATCH, D, generator=torch.Generator().manual_seed(0))
    return sorted([seconds(lambda: step(rows)) for _ in range(steps + 1)][1:])[steps // 2]


def order_milliseconds(rows: int) -> float:
    """One batch of the order alone, without reading any row."""
    order = shuffled(rows, BATCH, seed=0, start=0)
    next(order)
    return 1e3 * sorted(seconds(lambda: next(order)) for _ in range(50))[25]


def measure(folder: Path, dtype: str, gigabytes: float, consumed: float) -> dict[str, Any]:
    images = write(folder, dtype, gigabytes)
    count = images * TOKENS // BATCH
    drop_from_cache(folder)
    store = Store(folder, verify=False)
    cold = rows_per_second(store.batches(BATCH), count)
    warm = rows_per_second(store.batches(BATCH), 2 * count)
    opening = seconds(lambda: Store(folder))
    checked = Store(folder)
    first = seconds(lambda: next(checked.batches(BATCH)))
    return {
        "dtype": dtype,
        "shards": len(store.index.shards),
        "rows": store.rows,
        "open ms": 1e3 * opening,
        "first batch, verifying all, s": first,
        "rows/s cold": cold,
        "rows/s warm": warm,
        "cold / training": cold / consumed,
        "warm / training": warm / consumed,
    }


@contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """The folder asked for, or one that goes away."""
    if folder:
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def _shown(name: str, value: Any) -> str:
    return f"{name}: {value:,.4g}" if isinstance(value, float) else f"{name}: {value}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; not deleted after")
    args = parser.parse_args()
    order = {f"{rows:.0e}": order_milliseconds(rows) for rows in (10**3, 10**6, 10**9)}
    print("order of a batch, ms: ", "  ".join(f"{k} rows {v:.3g}" for k, v in order.items()))
    consumed = BATCH / step_seconds(args.steps)
    print(f"training reads {consumed:,.0f} rows/s")
    results = []
    for dtype in ("float16", "float32"):
        with place(args.folder and args.folder / dtype) as folder:
            results.append(measure(folder, dtype, args.gigabytes, consumed))
        shown = results[-1].items()
        print(
            "  ".join(f"{k}: {v:,.4g}" if isinstance(v, float) else f"{k}: {v}" for k, v in shown)
        )
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({**about, "order ms": order, "training rows/s": consumed, "stores": results}))


if __name__ == "__main__":
    main()
