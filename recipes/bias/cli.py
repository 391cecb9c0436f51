"""`vision-sae bias`: turn a concept up and down, and see what a classifier makes of it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vision_sae.cli import show
from vision_sae.cli.options import Json, OptionalActs, Overwrite, Sae
from vision_sae.jobs.loading import load_sae
from vision_sae.jobs.training import store_of
from vision_sae.naming import read_names
from vision_sae.recipes.bias.analysis import CONTROLS, Bias, bias
from vision_sae.recipes.bias.classes import read_where
from vision_sae.recipes.bias.page import as_data, write_page
from vision_sae.store import Store


class Runs(TyperGroup):
    """`vision-sae bias SAE ...` is short for `vision-sae bias run SAE ...`, its only command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] == ["run"] else ["run", *args])


app = typer.Typer(
    name="bias", cls=Runs, rich_markup_mode="markdown",
    help="How a classifier's output moves as a concept is turned up or down.",
)  # fmt: skip


@app.callback()
def group() -> None:
    """Its one command is `run`, which may be left out."""


@app.command()
def run(
    sae: Sae,
    label: Annotated[str, typer.Option(help="What the classifier tells: a key of the labels.")],
    concept: Annotated[
        str, typer.Option(help="KEY:VALUE of the labels, a latent's number, or its name.")
    ],
    acts: OptionalActs = None,
    where: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE: only images with that label.")
    ] = None,
    ignore: Annotated[
        str, typer.Option(help="Words of a label that do not count, with commas.")
    ] = "",
    top: Annotated[int, typer.Option(min=1, help="Latents of a KEY:VALUE concept.")] = 1,
    least: Annotated[int, typer.Option(help="Images that a class needs.")] = 10,
    random: Annotated[int, typer.Option(help="Random latents to compare with.")] = CONTROLS,
    seed: Annotated[int, typer.Option(help="Of the folds and the random latents.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A folder for the page.")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """How a classifier's output moves as a concept is turned up or down, with tests and a plot.

    `vision-sae bias sae/ --acts acts/ --label concept --where subcategory=person-role
    --ignore man,woman,person --concept gender:woman --out bias/`
    """
    with show.errors():
        store = Store(acts) if acts else store_of(sae)
        with show.progress("encode", store.images, "images") as advance:
            found = bias(
                load_sae(sae), store, label=label, concept=concept, where=read_where(where or []),
                ignore=[word.strip() for word in ignore.split(",") if word.strip()],
                names=read_names(sae), top=top, least=least, random=random, seed=seed,
                tell=lambda n: advance(n, ""),
            )  # fmt: skip
        page = write_page(found, out, overwrite=overwrite) if out else None
        if json:
            show.as_json(as_data(found) | {"page": str(page) if page else None})
        else:
            _show(found, page)


def _show(found: Bias, page: Path | None) -> None:
    columns = ["class", "images", "down", "up", "change", "Holm p", "p against random"]
    rows = [
        [e.name, e.images, e.down, e.up, e.change, e.p_holm, e.control_p] for e in found.effects
    ]
    show.grid(f"{found.concept.text} turned up", columns, rows)
    latents = ", ".join(f"{i} (to {value:.3g})" for i, value in found.concept.values.items())
    facts = {
        "latents": latents, "accuracy, held out": found.accuracy, "largest class": found.majority,
        "moved (total variation)": found.distance, "by random latents": found.control_distance,
        "p against random": found.distance_p, "other class predicted": found.flipped,
        "left out, too few images": ", ".join(found.left_out) or "none",
    }  # fmt: skip
    show.table("all classes", facts | ({"page": str(page)} if page else {}))
