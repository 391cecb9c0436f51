"""`vision-sae factors`: options, progress, and the table."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vision_sae import jobs
from vision_sae.cli import show
from vision_sae.cli.options import Acts, Json
from vision_sae.errors import ConfigError
from vision_sae.files import write_json
from vision_sae.jobs.factors import FactorReport, columns_of, factor_report


def run(
    saes: Annotated[
        list[Path], typer.Argument(help="SAEs of one site: folders made by train or another tool.")
    ],
    acts: Acts = Path("acts"),
    validate_on: Annotated[
        Path | None,
        typer.Option(
            help="Activations of the same site on other images: what is told of. Without it a "
            "fifth of --acts is held out.",
            rich_help_panel="Data",
        ),
    ] = None,
    factors: Annotated[
        str | None,
        typer.Option(help="Some factors only, as in style,category. Default: all single values."),
    ] = None,
    cross: Annotated[
        list[str] | None,
        typer.Option(help="Conjunctions of two factors too: category,style. Many times."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random SAE.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write the report to.")] = None,
    json: Json = False,
) -> None:
    """Which known factors an SAE has found: coverage, probes, control, disentanglement.

    Beside it a random SAE (the floor), the labels' own dictionary, and probes on x (the ceiling).

    Example: `vision-sae factors sae/ --acts acts/ --cross category,style --out factors.json`
    """
    with show.errors():
        with show.progress("factors", columns_of(len(saes)), "columns") as advance:
            report = factor_report(
                {_name(path, saes): jobs.load_sae(path) for path in saes},
                acts,
                validation=validate_on,
                factors=factors.split(",") if factors else None,
                cross=[_pair(text) for text in cross or []],
                seed=seed,
                tell=lambda column: advance(1, column),
            )
        if out is not None:
            write_json(out, report.as_dict())
        if json:
            show.as_json(report.as_dict())
        else:
            _tell(report)


def _name(path: Path, all_: list[Path]) -> str:
    """The folder's own name, or its whole path where several are called the same."""
    own = path.resolve().name
    return own if sum(other.resolve().name == own for other in all_) == 1 else str(path)


def _pair(text: str) -> tuple[str, str]:
    first, comma, second = text.partition(",")
    if not comma or "," in second:
        raise ConfigError(f"--cross takes two factors, as in category,style; got {text!r}")
    return first, second


def _tell(report: FactorReport) -> None:
    columns = list(report.scores)
    names = list(report.scores[columns[0]])
    rows: list[list[Any]] = []
    for name in names:
        found = [report.scores[column].get(name) for column in columns]
        rows.append([name, *(score.value if score else None for score in found)])
    values, left = len(report.values), len(report.left_out)
    show.grid(
        f"{values} factor values, told of {report.test_images:,} held-out images",
        ["", *columns],
        rows,
    )
    reasons = {s.reason for scores in report.scores.values() for s in scores.values() if s.reason}
    for reason in sorted(reasons):
        show.console.print(f"nan: {reason}")
    if left:
        show.console.print(f"{left} values were left out for too few images (named with --json)")
    show.grid(
        "coverage by factor",
        ["", *columns],
        [
            [factor, *(report.coverage_by_factor[c][factor] for c in columns)]
            for factor in report.coverage_by_factor[columns[0]]
        ],
    )
