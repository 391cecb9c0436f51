"""A search index of many codes: what it costs to build, to open and to ask, and its recall.

python benchmarks/search.py            # 1,000,000 rows with 32 of 1,536 latents each: a minute
python benchmarks/search.py --rows 100000

Latents are as frequent as 1 / rank^0.7 says, values are absolute normals. The index is opened and
asked in a process of its own, so that the memory is the index's (less what the imports take).
Recall is against all cosines, by one sparse matrix product over every entry.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vision_sae.recipes.search import Index, Query
from vision_sae.recipes.search.writing import write
from vision_sae.sparse.codes import Codes

QUERIES, TOP, CHUNK = 200, 10, 50_000


def made(n: int, k: int, s: int, seed: int = 0) -> Codes:
    """k distinct latents of each row, frequent ones first (exponential races), and their values."""
    draw = torch.Generator().manual_seed(seed)
    odds = torch.arange(1.0, s + 1) ** -0.7
    parts = [
        (torch.empty(min(CHUNK, n - i), s).exponential_(generator=draw) / odds)
        .topk(k, largest=False)
        .indices
        for i in range(0, n, CHUNK)
    ]
    values = torch.randn(n, k, generator=draw).abs() + 1e-3
    return Codes.even(values, torch.cat(parts), s)


def megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def ask(folder: Path) -> dict[str, Any]:
    """Open an index and ask it, every time for another of its images."""
    before, started = megabytes(), time.perf_counter()
    index = Index(folder)
    opened = time.perf_counter() - started
    after_opening = megabytes()
    numbers = torch.randperm(len(index), generator=torch.Generator().manual_seed(1))[:QUERIES]
    times, recalls = [], []
    for number in numbers.tolist():
        query = index.codes_of(number)
        started = time.perf_counter()
        index.nearest(query, top=TOP)
        times.append(time.perf_counter() - started)
    peak = megabytes()
    for number in numbers[:20].tolist():
        recalls.append(recall(index, index.codes_of(number)))
    return {
        "open ms": 1000 * opened,
        "first query ms": 1000 * times[0],
        "query ms": 1000 * statistics.median(times),
        "queries per second": len(times) / sum(times),
        "MB after opening": after_opening - before,
        "MB peak": peak - before,
        "recall": statistics.mean(recalls),
    }


def recall(index: Index, query: Query) -> float:
    """The share of the nearest by brute force that the index gives; ties count by their score."""
    arrays = index._arrays
    matrix = torch.sparse_csr_tensor(
        arrays["row_start"], arrays["row_latent"].long(), arrays["row_value"],
        (len(index), index.latents), check_invariants=False,
    )  # fmt: skip
    dense = torch.zeros(index.latents)
    dense[list(query.codes)] = torch.tensor(list(query.codes.values()))
    scores = (matrix @ dense) / (arrays["norm"] * dense.norm())
    least = float(scores.topk(TOP).values.min())
    found = [hit.number for hit in index.nearest(query, top=TOP)]
    return float((scores[found] >= least - 1e-6).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--latents", type=int, default=1536)
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        print(json.dumps(ask(args.ask)))
        return
    with tempfile.TemporaryDirectory() as folder:
        codes = made(args.rows, args.k, args.latents)
        keys = [f"image-{i:09d}" for i in range(args.rows)]
        started = time.process_time()
        write(codes, keys, Path(folder) / "index")
        built = {"build CPU s": time.process_time() - started}
        built["MB on disk"] = sum(f.stat().st_size for f in Path(folder).rglob("*.*")) / 2**20
        command = [sys.executable, __file__, "--ask", str(Path(folder) / "index")]
        asked = subprocess.run(command, capture_output=True, text=True, check=True)
        found = built | json.loads(asked.stdout)
    for name, value in found.items():
        print(f"{name}: {value:.3g}")
    about = {"rows": args.rows, "k": args.k, "latents": args.latents}
    print(json.dumps(about | {"torch": torch.__version__} | found))


if __name__ == "__main__":
    main()
