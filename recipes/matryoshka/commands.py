"""What each command does, between its options and its output."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vision_sae.cli import show
from vision_sae.cli.steps import Follower
from vision_sae.data import open_data
from vision_sae.files import write_bytes, write_json
from vision_sae.jobs.loading import load_sae
from vision_sae.jobs.splicing import Splicer
from vision_sae.jobs.subjects import found_saes
from vision_sae.jobs.training import store_of
from vision_sae.measures.latents import image_codes
from vision_sae.model.adapter import load_adapter
from vision_sae.naming import read_names
from vision_sae.recipes.matryoshka.curves import levels, progressive
from vision_sae.recipes.matryoshka.curves_picture import draw_curves
from vision_sae.recipes.matryoshka.depth import depths
from vision_sae.recipes.matryoshka.hierarchy import hierarchy
from vision_sae.recipes.matryoshka.level import needs_levels, own_codes, prefix_codes, sparsities_of
from vision_sae.recipes.matryoshka.splitting import split_levels
from vision_sae.recipes.matryoshka.train import train_nested
from vision_sae.recipes.matryoshka.tree_page import write_tree
from vision_sae.store import Store
from vision_sae.train import TrainConfig


def train(
    acts: Path,
    out: Path,
    nest: Any,
    ks: Sequence[int],
    shares: Sequence[float],
    reversed: bool,
    own: bool | None,
    validation: Path | None,
    settings: dict[str, Any],
    overwrite: bool,
) -> dict[str, Any]:
    steps = TrainConfig.of(steps=settings.get("steps", TrainConfig().steps)).steps
    with show.progress("train", steps, "steps") as advance:
        bar = Follower(advance)
        sae = train_nested(
            Store(acts), out, nest=nest, ks=ks, shares=shares, reversed=reversed, own=own,
            validation=Store(validation) if validation else None, overwrite=overwrite,
            on_log=bar.follow, **settings,
        )  # fmt: skip
        bar.reach(steps)
    return {"out": str(out), "latents": sae.config.s, "nest": sae.config.nest.model_dump()}  # type: ignore[union-attr]


def curves(
    folder: Path,
    acts: Path | None,
    model: str | None,
    data: str | None,
    ks: Sequence[int] | None,
    prefixes: Sequence[int] | None,
    beside: Sequence[Path],
    out: Path | None,
) -> list[dict[str, Any]]:
    sae, store = load_sae(folder), Store(acts) if acts else store_of(folder)
    splicer, others = _splicer(model, data, store), {f: load_sae(f) for f in found_saes(beside)}
    with show.progress("curves", len(levels(sae, ks, prefixes)) + len(others), "levels") as advance:
        told: Any = {"splicer": splicer, "tell": advance}
        points = progressive(sae, store, ks=ks, prefixes=prefixes, **told)
        own = (progressive(other, store, ks=(), prefixes=(), **told) for other in others.values())
        single = [point for (point,) in own]
    folders = [folder] * len(points) + list(others)
    rows = [{"sae": str(f), **asdict(p)} for f, p in zip(folders, points + single, strict=True)]
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "curves.json", rows)
        write_bytes(out / "curves.svg", draw_curves(points, single).encode())
    return rows


def _splicer(model: str | None, data: str | None, store: Store) -> Splicer | None:
    if model is None:
        return None
    return Splicer(load_adapter(model), store, source=open_data(data) if data else None)


def tree(
    folder: Path, acts: Path | None, out: Path, path: Sequence[str], label: str | None,
    model: str | None, k: int | None, overwrite: bool,
) -> dict[str, Any]:  # fmt: skip
    """The page, and what was measured on the way."""
    sae, store = load_sae(folder), Store(acts) if acts else store_of(folder)
    bounds, tokens = needs_levels(sae), store.index.tokens_per_image
    # few latents per row: at the largest k most of a short prefix fires on everything
    k = min(sparsities_of(sae), default=None) if k is None else k
    with show.progress("tree", store.images, "images") as advance:
        codes = prefix_codes(sae, store, bounds, lambda n: advance(n, ""), k=k)
    own = own_codes(codes, bounds)
    found, seen = hierarchy(own, sae.W_dec, bounds), image_codes(own, tokens)
    keys = {key for about in store.about for key in about}
    deep = depths(seen, store.about, bounds, path=path) if set(path) <= keys else []
    label = label or path[0]
    split = (
        split_levels(codes, bounds, store.keys, store.about, label, tokens=tokens)
        if label in keys
        else []
    )
    page = write_tree(
        found, seen, store, out, names=read_names(folder), overwrite=overwrite,
        numbers={f"depth of level {d.level + 1}": f"{d.depth:.2f}" for d in deep},
        adapter=load_adapter(model) if model else None,
    )  # fmt: skip
    numbers = {
        "page": str(page), "latents": sum(map(bool, found.fired)), "links": len(found.links),
        "roots": len(found.roots), "depths": [asdict(d) for d in deep],
        "splits": [asdict(s) for s in split],
    }  # fmt: skip
    links = [asdict(link) for link in found.links.values()]
    write_json(out / "hierarchy.json", numbers | {"tree": links})
    return numbers
