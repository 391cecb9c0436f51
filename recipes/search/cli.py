"""`vision-sae search ...`: index an SAE's codes, and find images by concepts."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vision_sae.cli import show
from vision_sae.cli.options import Json, OptionalActs, Overwrite, Sae
from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.jobs.loading import load_sae
from vision_sae.jobs.training import store_of
from vision_sae.model.adapter import load_adapter
from vision_sae.naming import Name, read_names
from vision_sae.recipes.search.index import Index
from vision_sae.recipes.search.page import said, write_hits
from vision_sae.recipes.search.query import Hit, Query
from vision_sae.recipes.search.writing import build as build_index
from vision_sae.store import Store

app = typer.Typer(
    name="search", no_args_is_help=True, rich_markup_mode="markdown",
    help="Find images by the concepts that an SAE sees in them.",
)  # fmt: skip


@app.command()
def build(
    sae: Sae,
    out: Annotated[Path, typer.Option(help="The folder of the index.")],
    acts: OptionalActs = None,
    overwrite: Overwrite = False,
) -> None:
    """Index the codes of a store's images.

    `vision-sae search build sae/ --acts acts/ --out index/`
    """
    with show.errors():
        store = Store(acts) if acts else store_of(sae)
        with show.progress("index", store.images, "images") as advance:
            found = build_index(
                load_sae(sae), store, out, overwrite=overwrite, tell=lambda n: advance(n, "")
            )
        show.console.print(f"{len(found):,} images by {found.latents:,} latents in {out}")


@app.command()
def find(
    index: Annotated[Path, typer.Argument(help="A folder that build has written.")],
    key: Annotated[str | None, typer.Option(help="Like this image.")] = None,
    plus: Annotated[
        list[str] | None, typer.Option(help="With a concept: its name, number, or NUMBER=VALUE.")
    ] = None,
    minus: Annotated[list[str] | None, typer.Option(help="Without a concept.")] = None,
    sae: Annotated[Path | None, typer.Option(help="The SAE's folder, for names.")] = None,
    top: Annotated[int, typer.Option(min=1)] = 10,
    out: Annotated[Path | None, typer.Option(help="A folder for a page with pictures.")] = None,
    acts: Annotated[
        Path | None, typer.Option(help="For pictures. Default: the store that was indexed.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Draws the pictures of prompts.")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Images near another, plus or minus concepts, and what they share.

    `vision-sae search find index/ --key noto/1f355 --minus pizza --plus heart --sae sae/
    --out found/`
    """
    with show.errors():
        found = Index(index)
        names = read_names(sae) if sae else {}
        query = query_of(found, key, plus or [], minus or [], names)
        image = found.keys.number(key) if key else None
        hits = found.nearest(query, top=top, leave_out=[] if image is None else [image])
        page = None
        if out:
            page = write_hits(
                query, hits, pictured(found, acts), out, image=image, names=names,
                asked=in_words(key, plus or [], minus or []), overwrite=overwrite,
                adapter=load_adapter(model) if model else None,
            )  # fmt: skip
    if json:
        show.as_json([asdict(hit) for hit in hits])
        return
    columns = ["image", "cosine", "shared", "only the query", "only the image"]
    show.grid("nearest", columns, [_row(hit, names) for hit in hits])
    if page:
        show.console.print(f"page: {page}")


def pictured(index: Index, acts: Path | None) -> Store:
    """The store of an index's images. Raises DataError when it is gone or holds others."""
    where = acts or (Path(index.acts) if index.acts else None)
    if where is None or not where.exists():
        raise DataError(f"the activations that {index.folder} was made from are gone; pass --acts")
    store = Store(where)
    if store.keys != list(index.keys):
        raise DataError(f"{where} holds other images than the index {index.folder}")
    return store


def in_words(key: str | None, plus: list[str], minus: list[str]) -> str:
    """What was asked for: like A, with B, without C."""
    asked = [f"like {key}"] if key else []
    asked += [f"with {', '.join(plus)}"] if plus else []
    asked += [f"without {', '.join(minus)}"] if minus else []
    return ", ".join(asked)


def query_of(
    index: Index, key: str | None, plus: list[str], minus: list[str], names: dict[int, Name]
) -> Query:
    """Raises ConfigError for no query, UnknownName for a name that no latent has."""
    if key is None and not plus:
        raise ConfigError("search needs --key, --plus or both")
    query = index.codes_of(key) if key else Query({})
    for text in plus:
        number, _, value = text.partition("=")
        for latent in latents_of(number, names):
            query = query.with_latent(latent, float(value) if value else index.typical(latent))
    return query.without(*(latent for text in minus for latent in latents_of(text, names)))


def latents_of(text: str, names: dict[int, Name]) -> list[int]:
    """A latent by number, or all that have a name."""
    if text.strip().isdigit():
        return [int(text)]
    found = [latent for latent, name in names.items() if name.name == text]
    if not found:
        raise UnknownName("concept", text, {name.name for name in names.values()})
    return found


def _row(hit: Hit, names: dict[int, Name]) -> list[Any]:
    def listed(latents: list[int]) -> str:
        return ", ".join(said(i, names) for i in latents[:4])

    return [hit.key, hit.score, listed([i for i, _ in hit.shared]), listed(hit.only_query),
            listed(hit.only_hit)]  # fmt: skip
