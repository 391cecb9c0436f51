"""`vision-sae bottleneck ...`: the options; commands.py does what they ask for."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vision_sae.cli import show
from vision_sae.cli.options import Json, Overwrite, given_only
from vision_sae.recipes.bottleneck.compare_command import compare

app = typer.Typer(
    name="bottleneck", no_args_is_help=True, rich_markup_mode="markdown",
    help="Classifiers that decide by an SAE's concepts, say why, and can be corrected.",
)  # fmt: skip

app.command()(compare)

Folder = Annotated[Path, typer.Argument(help="A bottleneck's folder, written by fit or edit.")]
Out = Annotated[Path, typer.Option(help="The folder to write to.")]
Data = Annotated[
    str | None, typer.Option(help="emoji-canvas[:SPLIT], a folder of images, shards, hf:, ...")
]
Model = Annotated[str | None, typer.Option(help="Default: the one that the SAE was trained on.")]
Saes = Annotated[
    list[Path] | None, typer.Option("--sae", help="Default: where they were when it was fitted.")
]
Acts = Annotated[Path | None, typer.Option(help="In place of --data: a store made by extract.")]
Labels = Annotated[
    str | None,
    typer.Option(
        help="What the data knows of each image (category; label: its folder), or a table "
        "(.csv) of key and label. Default: as in fit."
    ),
]
Key = Annotated[list[str], typer.Option(help="An image's key; may be given many times.")]


class Choice(StrEnum):
    accuracy = "accuracy"
    one_se = "one-se"
    per_class = "per-class"
    per_decision = "per-decision"


class Pool(StrEnum):
    max = "max"
    mean = "mean"
    cls = "cls"


class HeadKind(StrEnum):
    elastic_net = "elastic-net"
    adam = "adam"


class Scale(StrEnum):
    deviation = "deviation"
    none = "none"


def setting(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Head", show_default=False)


@app.command()
def fit(
    sae: Annotated[list[Path], typer.Option(help="An SAE's folder; several are put side by side.")],
    labels: Annotated[
        str,
        typer.Option(
            help="What the data knows of each image (category; label: its folder), or a table "
            "(.csv) of key and label; lists and repeated keys are several labels."
        ),
    ],
    out: Out,
    model: Annotated[str | None, typer.Option(help="emoji-clip, open_clip:NAME, ...")] = None,
    data: Data = None,
    acts: Acts = None,
    validation: Annotated[
        str | None, typer.Option(help="Data (or a store) to choose by. Default: cut from --data.")
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Images that share this (name, subject) stay on one side of the cut."),
    ] = None,
    pool: Annotated[Pool, typer.Option(help="Over an image's tokens.")] = Pool.max,
    choice: Annotated[Choice | None, setting("Of the path. Default: accuracy.")] = None,
    budget: Annotated[
        float | None, setting("Concepts per class (default 10) or decision (default 25).")
    ] = None,
    centre: Annotated[
        bool | None, setting("Take off the mean code. Default: yes.", "--centre/--no-centre")
    ] = None,
    relaxed: Annotated[
        bool | None,
        setting("Fit weights anew on the chosen concepts.", "--relaxed/--no-relaxed"),
    ] = None,
    l1_ratio: Annotated[
        list[float] | None,
        setting("l1 share of the penalty; several are tried. Default: 0.95."),
    ] = None,
    scale: Annotated[
        list[Scale] | None, setting("Units of the penalty; several are tried. Default: deviation.")
    ] = None,
    strengths: Annotated[int | None, setting("Points of the path. Default: 36.")] = None,
    smallest: Annotated[float | None, setting("Last strength / first. Default: 0.001.")] = None,
    head: Annotated[HeadKind | None, setting("Default: elastic-net.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a forward pass.")] = 64,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Fit a sparse classifier on concept scores, along a whole path, and choose from it.

    Example: `vision-sae bottleneck fit --model emoji-clip --sae sae/ --data emoji-canvas:train
    --labels category --validation emoji-canvas:validation --out cbm/`
    """
    from vision_sae.recipes.bottleneck import commands
    from vision_sae.recipes.bottleneck.inputs import Rows

    given = {
        "choice": choice, "budget": budget, "centre": centre, "relaxed": relaxed, "scale": scale,
        "l1_ratio": l1_ratio, "strengths": strengths, "smallest": smallest, "head": head,
    }  # fmt: skip
    with show.errors():
        settings = given_only(given)
        rows = Rows(data, model, acts, batch_size)
        job = commands.Fitting(rows, sae, labels, pool.value, validation, groups)
        commands.fit(job, out, settings, overwrite, json)


@app.command()
def predict(
    bottleneck: Folder,
    data: Data = None,
    acts: Acts = None,
    model: Model = None,
    sae: Saes = None,
    json: Json = False,
) -> None:
    """Classify images.

    Example: `vision-sae bottleneck predict cbm/ --data photos/ --json`
    """
    from vision_sae.recipes.bottleneck import commands
    from vision_sae.recipes.bottleneck.inputs import Rows

    with show.errors():
        commands.predict(bottleneck, Rows(data, model, acts), sae or [], json)


@app.command()
def evaluate(
    bottleneck: Folder,
    data: Data = None,
    labels: Labels = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(help="Tell the worst group's accuracy too, by what the data knows; many."),
    ] = None,
    acts: Acts = None,
    model: Model = None,
    sae: Saes = None,
    json: Json = False,
) -> None:
    """Accuracy, calibration, and how many concepts a decision takes.

    Example: `vision-sae bottleneck evaluate cbm/ --data emoji-canvas:test --groups style`
    """
    from vision_sae.recipes.bottleneck import commands
    from vision_sae.recipes.bottleneck.inputs import Rows

    with show.errors():
        rows = Rows(data, model, acts)
        commands.evaluate(bottleneck, rows, sae or [], labels, groups or [], json)


@app.command()
def explain(
    bottleneck: Folder,
    key: Key,
    data: Data = None,
    of: Annotated[str | None, typer.Option(help="A class. Default: the predicted one.")] = None,
    against: Annotated[str | None, typer.Option(help="Why not this class?")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="CONCEPT=CODE", help="What if its code were this? Many."),
    ] = None,
    scale: Annotated[
        list[str] | None,
        typer.Option(metavar="CONCEPT=FACTOR", help="What if its code were scaled? Many."),
    ] = None,
    acts: Acts = None,
    model: Model = None,
    sae: Saes = None,
    json: Json = False,
) -> None:
    """The concepts behind a decision, with contributions that sum to the logit; what-ifs.

    Example: `vision-sae bottleneck explain cbm/ --data emoji-canvas:test --key dove__twemoji`

    Example: `vision-sae bottleneck explain cbm/ --data photos/ --key dog/001 --set grass=0`
    """
    from vision_sae.recipes.bottleneck import commands
    from vision_sae.recipes.bottleneck.inputs import Rows

    with show.errors():
        asked = commands.Question(key, of, against, set_ or [], scale or [])
        commands.explain(bottleneck, Rows(data, model, acts), sae or [], asked, json)


@app.command()
def edit(
    bottleneck: Folder,
    out: Out,
    without: Annotated[
        list[str] | None, typer.Option(help="A concept by name, part of a name or number; many.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Keep these concepts only; many.")] = None,
    like: Annotated[
        str | None, typer.Option(help="Remove concepts whose name means something like this.")
    ] = None,
    least: Annotated[float, typer.Option(help="Cosine from which a name is like it.")] = 0.8,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep what --like finds, and remove the rest.")
    ] = False,
    spurious: Annotated[
        str | None,
        typer.Option(help="Remove concepts that tell this attribute better than the classes."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="A name that matches many concepts means all of them.")
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit anew on what is left (needs the data).")
    ] = False,
    data: Data = None,
    labels: Labels = None,
    acts: Acts = None,
    model: Model = None,
    sae: Saes = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Remove or keep concepts, and write the corrected classifier.

    Example: `vision-sae bottleneck edit cbm/ --without "blue background" --all --out corrected/`

    Example: `vision-sae bottleneck edit cbm/ --spurious style --data emoji-canvas:train --refit
    --out corrected/`
    """
    from vision_sae.recipes.bottleneck import commands
    from vision_sae.recipes.bottleneck.inputs import Rows

    with show.errors():
        asked = commands.Correction(
            without or [], only or [], like, least, keep, spurious, every, refit
        )
        rows = Rows(data, model, acts)
        commands.edit(bottleneck, out, asked, rows, sae or [], labels, overwrite, json)


@app.command()
def page(
    bottleneck: Folder,
    out: Out,
    data: Data = None,
    labels: Labels = None,
    images: Annotated[int, typer.Option(min=1, help="How many are explained.")] = 48,
    model: Model = None,
    sae: Saes = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a page that says why, in words and pictures, and on which concepts can be switched off.

    Example: `vision-sae bottleneck page cbm/ --data emoji-canvas:test --out page/`
    """
    from vision_sae.recipes.bottleneck import commands
    from vision_sae.recipes.bottleneck.inputs import Rows

    with show.errors():
        rows = Rows(data, model)
        commands.page(bottleneck, out, rows, sae or [], labels, images, overwrite)
