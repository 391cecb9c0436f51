"""The hierarchy as a page: coarse latents first, each opening on the finer ones below it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vision_sae.errors import claim_folder
from vision_sae.files import write_bytes
from vision_sae.jobs.pictures import pictures
from vision_sae.measures.latents import ImageCodes
from vision_sae.model.adapter import Adapter
from vision_sae.naming import Name
from vision_sae.recipes.matryoshka.hierarchy import Hierarchy
from vision_sae.report.files import remove_stale
from vision_sae.report.gather import thumbnail
from vision_sae.report.html import render
from vision_sae.report.sprites import Sprites, write_sprites
from vision_sae.store import Store

PICTURES = 6  # per latent


def write_tree(
    tree: Hierarchy,
    codes: ImageCodes,
    store: Store,
    out: Path | str,
    *,
    names: Mapping[int, Name] | None = None,
    numbers: Mapping[str, str] | None = None,
    adapter: Adapter | None = None,
    overwrite: bool = False,
) -> Path:
    """Write index.html and sprites/*.webp into `out`; returns the path of index.html.

    `codes` are the store's by latent (`scan(sae, store).codes`), `numbers` are shown at the top,
    `adapter` draws the pictures of a store of prompts. Raises OutputExists, DataError when the
    store's images have changed.
    """
    out = claim_folder(Path(out), "index.html", overwrite=overwrite)
    shown = {i: _pictures(codes, i) for i in range(len(tree.fired)) if tree.fired[i]}
    wanted = sorted({image for images in shown.values() for image in images})
    thumbnails = [thumbnail(picture) for _, picture in pictures(store, wanted, adapter)]
    sprites = write_sprites(thumbnails, out / "sprites")
    place = {image: sprites.place(n) for n, image in enumerate(wanted)}
    captions = {i: str(store.about[i].get("caption", store.keys[i])) for i in wanted}
    nodes = {i: _node(tree, i, names or {}, images, captions) for i, images in shown.items()}
    html = _html(tree, nodes, place, sprites, dict(numbers or {}))
    write_bytes(out / "index.html", html.encode())
    remove_stale(out / "sprites", "sheet-*.webp", {out / "sprites" / f for f in sprites.files})
    return out / "index.html"


def _pictures(codes: ImageCodes, latent: int) -> list[int]:
    found: list[int] = codes.of(latent)[0][:PICTURES].tolist()
    return found


def _node(
    tree: Hierarchy,
    latent: int,
    names: Mapping[int, Name],
    images: list[int],
    captions: Mapping[int, str],
) -> dict[str, Any]:
    link = tree.links.get(latent)
    return {
        "id": latent,
        "name": names[latent].name if latent in names else "",
        "level": tree.level(latent),
        "share": tree.fired[latent] / tree.rows,
        "link": link,
        "images": [(image, captions[image]) for image in images],
        "children": tree.children.get(latent, []),
    }


def _html(
    tree: Hierarchy,
    nodes: Mapping[int, dict[str, Any]],
    place: Mapping[int, tuple[str, int, int]],
    sprites: Sprites,
    numbers: Mapping[str, str],
) -> str:
    roots = [i for i in tree.roots if i in nodes]
    return render(
        __package__,
        "tree.html",
        nodes=nodes,
        place=place,
        size=sprites.size,
        numbers=numbers,
        parents=[i for i in roots if nodes[i]["children"]],
        alone=[i for i in roots if not nodes[i]["children"]],
        bounds=tree.bounds,
        links=len(tree.links),
    )
