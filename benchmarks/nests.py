"""One nested SAE against one SAE for each k, on emoji-clip: FVU on held-out images, over seeds.

python benchmarks/nests.py --out nests/            # three seeds, two sites: 20 minutes
python benchmarks/nests.py --out nests/ --sites visual --seeds 0

The 10,077 train images of EmojiCanvas, measured on its 731 validation images (`--split test` for
the table of docs/matryoshka.md). All SAEs have the same width, steps, rows and learning rate. What
is in `out` is not trained again. `msae` is the point that MSAE publishes (arXiv 2502.20578,
figure 1: cosine .99, FVU below .1 at 80% zeros): one nested SAE up to k = 128 of 640 latents.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

import vision_sae as vs
from vision_sae.data import open_data
from vision_sae.model.adapter import load_adapter
from vision_sae.recipes.matryoshka import nested_settings, progressive
from vision_sae.sae import SAE
from vision_sae.store import Store

KS = (4, 8, 16, 32)
SITES = {"visual": "all", "visual.transformer.resblocks.4": "cls"}  # which tokens of each
SETTINGS: dict[str, Any] = {"expansion": 8, "steps": 600, "batch_size": 512, "lr": 8e-3}
MSAE: dict[str, Any] = {"expansion": 10 / 3, **nested_settings("k", (8, 16, 32, 64, 128))}


class Job(NamedTuple):
    """A training, and the ks at which it is measured."""

    name: str
    settings: dict[str, Any]
    ks: tuple[int, ...]


def jobs() -> Iterator[Job]:
    for family in ("topk", "batchtopk"):
        for k in KS:
            yield Job(f"{family}-{k}", {"family": family, "k": k}, (k,))
    yield Job("k", nested_settings("k", KS), KS)
    yield Job("both", nested_settings("both", KS), KS)
    yield Job("both-3114-0.1", _weighted(0.1, (3, 1, 1, 4)), KS)
    yield Job("both-3114-0.2", _weighted(0.2, (3, 1, 1, 4)), KS)
    yield Job("both-3115-0.1", _weighted(0.1, (3, 1, 1, 5)), KS)
    yield Job("both-reversed-0.1", _weighted(0.1, "reversed"), KS)
    yield Job("prefix", nested_settings("prefix", KS) | {"family": "batchtopk"}, KS[-1:])
    yield Job("msae", MSAE, (8, 16, 32, 64, 128))


def _weighted(share: float, weighting: str | tuple[int, ...]) -> dict[str, Any]:
    """`both` with a share of the loss for the drawn prefix, and weights of the ks."""
    settings = nested_settings("both", KS)
    changed = {"prefix_weight": share, "weighting": weighting}
    return settings | {"nest": settings["nest"] | changed}


def acts(out: Path, site: str, split: str) -> Store:
    folder = out / "acts" / f"{site}-{split}"
    if not (folder / "index.json").exists():
        adapter, data = load_adapter("emoji-clip"), open_data(f"emoji-canvas:{split}")
        vs.extract(adapter, data, site, folder, tokens=SITES[site], batch_size=256)
    return Store(folder)


def trained(store: Store, folder: Path, settings: dict[str, Any]) -> SAE:
    if not (folder / "config.json").exists():
        return vs.train_store(store, folder, **SETTINGS | settings)
    return vs.load_sae(folder)


def measured(sae: SAE, store: Store, ks: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    for point in progressive(sae, store, ks=ks if len(ks) > 1 else None):
        yield asdict(point) | {"k": point.k or ks[0]}


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--sites", nargs="*", default=list(SITES), choices=SITES)
    made.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    made.add_argument("--jobs", nargs="*", help="names, of all by default")
    made.add_argument("--steps", type=int, default=SETTINGS["steps"], help="another --out for each")
    made.add_argument("--split", choices=["validation", "test"], default="validation")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    return made.parse_args()


def main() -> None:
    args, rows = options(), []
    torch.set_num_threads(args.threads)
    chosen = [job for job in jobs() if not args.jobs or job.name in args.jobs]
    for site in args.sites:
        train, held_out = acts(args.out, site, "train"), acts(args.out, site, args.split)
        for job in chosen:
            of_job = []
            for seed in args.seeds:
                folder = args.out / site / f"{job.name}-seed{seed}"
                settings = job.settings | {"seed": seed, "steps": args.steps}
                sae = trained(train, folder, settings)
                points = list(measured(sae, held_out, job.ks))
                of_job += [{"site": site, "job": job.name, "seed": seed, **p} for p in points]
            rows += of_job
            show(of_job)
    print(json.dumps({"torch": torch.__version__, "split": args.split, "rows": rows}))


def show(rows: list[dict[str, Any]]) -> None:
    """Means over seeds, with half the range."""
    for k, prefix in dict.fromkeys((row["k"], row["prefix"]) for row in rows):
        mine = [row for row in rows if (row["k"], row["prefix"]) == (k, prefix)]
        keys = ("fvu", "cosine", "zeros", "l0")
        fvu, cosine, zeros, l0 = (statistics.fmean(row[key] for row in mine) for key in keys)
        spread = (max(r["fvu"] for r in mine) - min(r["fvu"] for r in mine)) / 2
        print(
            f"{rows[0]['site']:32} {rows[0]['job']:16} k {k:3} of {prefix or 'all':4}  "
            f"FVU {fvu:.4f} +- {spread:.4f}  cosine {cosine:.4f}  zeros {zeros:.3f}  L0 {l0:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
