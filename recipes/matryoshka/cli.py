"""`vision-sae matryoshka ...`: the options; commands.py does what they ask for."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vision_sae.cli import show
from vision_sae.cli.options import Acts, Config, Json, Overwrite, Sae, Set, settings_from
from vision_sae.errors import ConfigError
from vision_sae.recipes.matryoshka import commands
from vision_sae.recipes.matryoshka.depth import PATH
from vision_sae.recipes.matryoshka.train import KS, SHARES


class TrainsByDefault(TyperGroup):
    """`vision-sae matryoshka --acts ...` is short for `vision-sae matryoshka train --acts ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("--") and args[0] != "--help":
            args = ["train", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="matryoshka", cls=TrainsByDefault, no_args_is_help=True, rich_markup_mode="markdown",
    help="One SAE for every sparsity and width, and the hierarchy of what it finds.",
)  # fmt: skip

Model = Annotated[
    str | None,
    typer.Option(help="The model of the activations: adds zero-shot accuracy, or names."),
]
OptionalActs = Annotated[
    Path | None, typer.Option("--acts", help="Default: the activations it was trained on.")
]
Out = Annotated[Path, typer.Option(help="The folder to write to.")]


class Nesting(StrEnum):
    both = "both"
    k = "k"
    prefix = "prefix"
    random = "random"


@app.command()
def train(
    acts: Acts,
    out: Out,
    nest: Annotated[
        Nesting, typer.Option(help="k: MSAE; prefix, random: of the dictionary; both at once.")
    ] = Nesting.both,
    ks: Annotated[str, typer.Option(help="Active latents per row.")] = ",".join(map(str, KS)),
    shares: Annotated[str, typer.Option(help="Prefixes, as shares of the latents.")] = ",".join(
        map(str, SHARES)
    ),
    reversed: Annotated[
        bool, typer.Option("--reversed", help="Small k count more (MSAE's RW).")
    ] = False,
    own: Annotated[
        bool | None,
        typer.Option(
            "--own/--shared",
            help="Each k reads latents with a gain and a shift of its own, or as MSAE one for all. "
            "Default: --own where the family is topk.",
        ),
    ] = None,
    validate_on: Annotated[Path | None, typer.Option(help="Keep the best weights here.")] = None,
    config: Config = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train a nested SAE; `train` may be left out. Settings of `vision-sae train` go by --set.

    `vision-sae matryoshka --acts acts/ --nest both --ks 4,8,16,32 --set expansion=8 --out nested/`
    """
    with show.errors():
        given = settings_from(config, set_, {})
        found = commands.train(
            acts, out, nest.value, counts(ks, "--ks") or [], numbers(shares, "--shares"), reversed,
            own, validate_on, given, overwrite,
        )  # fmt: skip
        show.as_json(found) if json else show.table(f"nested SAE in {out}", found)


@app.command()
def curves(
    sae: Sae,
    acts: OptionalActs = None,
    model: Model = None,
    data: Annotated[str | None, typer.Option(help="Images for the zero-shot accuracy.")] = None,
    ks: Annotated[str | None, typer.Option(help="Default: those it was nested over.")] = None,
    prefixes: Annotated[
        str | None, typer.Option(help="In latents. Default: those it was nested over.")
    ] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(help="Other SAEs, or a sweep, to measure beside it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for curves.json and curves.svg.")
    ] = None,
    json: Json = False,
) -> None:
    """FVU, cosine and zero-shot accuracy for each k and each prefix of one SAE.

    `vision-sae matryoshka curves nested/ --acts validation/ --beside topk/ --out curves/`
    """
    with show.errors():
        chosen = counts(ks, "--ks"), counts(prefixes, "--prefixes")
        rows = commands.curves(sae, acts, model, data, *chosen, beside or [], out)
    if json:
        show.as_json(rows)
    else:
        known = [key for key in rows[0] if any(row[key] is not None for row in rows)]
        named = [row | {"sae": Path(row["sae"]).name} for row in rows]
        show.grid(f"{sae}", known, [[row[key] for key in known] for row in named])


@app.command()
def tree(
    sae: Sae,
    out: Out,
    acts: OptionalActs = None,
    path: Annotated[
        str, typer.Option(help="Labels from coarse to fine that the images carry.")
    ] = ",".join(PATH),
    label: Annotated[
        str | None, typer.Option(help="Whose splitting is measured. Default: the coarsest.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Draws the pictures of prompts.")] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="Latents per row. Default: the smallest nested k.")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """A page of the hierarchy, coarse to fine, and how well it agrees with what is known.

    `vision-sae matryoshka tree nested/ --out tree/`
    """
    labels = [part.strip() for part in path.split(",") if part.strip()]
    with show.errors():
        found = commands.tree(sae, acts, out, labels, label, model, k, overwrite)
    if json:
        show.as_json(found)
        return
    show.table(f"hierarchy of {sae}", {k: v for k, v in found.items() if not isinstance(v, list)})
    for title, rows in (("depth by level", found["depths"]), ("splitting", found["splits"])):
        if rows:
            show.grid(title, list(rows[0]), [list(row.values()) for row in rows])


def counts(text: str | None, option: str) -> list[int] | None:
    """Whole numbers with commas. Raises ConfigError."""
    if text is None:
        return None
    found = numbers(text, option)
    if any(number != int(number) for number in found):
        raise ConfigError(f"{option} takes whole numbers with commas, as 4,8,16; got {text!r}")
    return [int(number) for number in found]


def numbers(text: str, option: str) -> list[float]:
    """Comma-separated positive numbers. Raises ConfigError."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise ConfigError(f"{option} takes positive numbers with commas, as 4,8,16; got {text!r}")
    return found
