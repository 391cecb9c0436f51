"""What was found as a page: the query, its nearest images, and the concepts that say why."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vision_sae.errors import claim_folder
from vision_sae.files import write_bytes, write_json
from vision_sae.jobs.pictures import pictures
from vision_sae.model.adapter import Adapter
from vision_sae.naming import Name
from vision_sae.recipes.search.query import Hit, Query
from vision_sae.report.files import remove_stale
from vision_sae.report.gather import thumbnail
from vision_sae.report.html import render
from vision_sae.report.sprites import write_sprites
from vision_sae.store import Store

SHOWN = 4  # concepts of each kind
Concepts = list[tuple[str, float | None]]  # what they are called, and what they count


def write_hits(
    query: Query,
    hits: Sequence[Hit],
    store: Store,
    out: Path | str,
    *,
    image: int | None = None,
    asked: str = "",
    names: Mapping[int, Name] | None = None,
    adapter: Adapter | None = None,
    overwrite: bool = False,
) -> Path:
    """Write index.html, hits.json and sprites/*.webp into `out`; returns the path of index.html.

    `image` is the query's own, where it began with one, `asked` the query in words. `adapter` draws
    the pictures of a store of prompts. Raises OutputExists, DataError when the store's images have
    changed.
    """
    out = claim_folder(Path(out), "index.html", overwrite=overwrite)
    wanted = sorted({hit.number for hit in hits} | ({image} if image is not None else set()))
    thumbnails = [thumbnail(picture) for _, picture in pictures(store, wanted, adapter)]
    sprites = write_sprites(thumbnails, out / "sprites")
    shown = {i: _picture(store, i, sprites.place(n)) for n, i in enumerate(wanted)}
    known = names or {}
    page = render(
        __package__,
        "hits.html",
        asked=asked,
        size=sprites.size,
        images=len(store.keys),
        query=shown.get(image) if image is not None else None,
        concepts=_strongest(query, known),
        hits=[_card(hit, shown[hit.number], known) for hit in hits],
    )
    write_bytes(out / "index.html", page.encode())
    write_json(out / "hits.json", [vars(hit) for hit in hits])
    remove_stale(out / "sprites", "sheet-*.webp", {out / "sprites" / f for f in sprites.files})
    return out / "index.html"


def _picture(store: Store, image: int, place: tuple[str, int, int]) -> dict[str, Any]:
    caption = str(store.about[image].get("caption") or store.keys[image])
    sheet, x, y = place
    return {"key": store.keys[image], "caption": caption, "sheet": sheet, "x": x, "y": y}


def _strongest(query: Query, names: Mapping[int, Name]) -> Concepts:
    found = sorted(query.codes.items(), key=lambda pair: -abs(pair[1]))
    return [(said(i, names), value) for i, value in found[: 2 * SHOWN]]


def _card(hit: Hit, picture: dict[str, Any], names: Mapping[int, Name]) -> dict[str, Any]:
    return {
        "picture": picture,
        "score": hit.score,
        "shared": [(said(i, names), part) for i, part in hit.shared[:SHOWN]],
        "only_query": [(said(i, names), None) for i in hit.only_query[:SHOWN]],
        "only_hit": [(said(i, names), None) for i in hit.only_hit[:SHOWN]],
    }


def said(latent: int, names: Mapping[int, Name]) -> str:
    """A latent's name, or its number."""
    return names[latent].name if latent in names else str(latent)
