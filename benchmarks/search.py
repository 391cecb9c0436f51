"""A search index of many codes: what it costs to build, to open and to ask, and its recall.

python benchmarks/search.py            # 1,000,000 rows with 32 of 1,536 latents each
python benchmarks/search.py --rows 100000

The most frequent latents fire on half of the rows, the rarest on 1%. The index is opened and asked
in a process of its own; its memory is what that process holds more than before. Recall is against
all cosines, by one sparse matrix product over every entry.
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

QUERIES, TOP, CHECKED = 100, 10, 10


def made(n: int, k: int, s: int, seed: int = 0) -> Codes:
    """One latent from each of k groups in each row; group j has about (2 j + 1) s / k^2 of them."""
    draw = torch.Generator().manual_seed(seed)
    edges = (s * (torch.arange(k + 1) / k) ** 2).round().long()
    size = edges.diff()
    if bool((size < 1).any()):
        raise SystemExit(f"{s} latents are too few for {k} groups")
    latents = edges[:-1] + (torch.rand(n, k, generator=draw) * size).long().clamp(max=size - 1)
    values = torch.rand(n, k, generator=draw) + 0.1
    return Codes.even(values, latents, s)


def megabytes() -> float:
    """What this process holds, the parts of mapped files that it has read among them (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


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
    asked = megabytes()
    for number in numbers[:CHECKED].tolist():
        recalls.append(recall(index, index.codes_of(number)))
    return {
        "open ms": 1000 * opened,
        "first query ms": 1000 * times[0],
        "query ms": 1000 * statistics.median(times),
        "queries per second": len(times) / sum(times),
        "MB after opening": after_opening - before,
        "MB after the queries": asked - before,
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
