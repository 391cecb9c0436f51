"""Options that several commands share, and settings from flags and files."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vision_sae.errors import ConfigError
from vision_sae.jobs.suite import read_json

Acts = Annotated[
    Path, typer.Option(help="A folder of activations, made by extract.", rich_help_panel="Data")
]
StoredActs = Annotated[
    Path | None,
    typer.Option(
        "--acts", help="A folder of activations, made by extract.", rich_help_panel="Data"
    ),
]
StreamModel = Annotated[
    str | None,
    typer.Option("--model", help="In place of --acts: the model.", rich_help_panel="Stream"),
]
StreamSite = Annotated[
    str | None,
    typer.Option("--site", help="In place of --acts: where to read.", rich_help_panel="Stream"),
]
StreamData = Annotated[
    str | None,
    typer.Option("--data", help="In place of --acts: its images.", rich_help_panel="Stream"),
]
BufferRows = Annotated[
    int,
    typer.Option(min=1, help="Rows that are shuffled together.", rich_help_panel="Stream"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of a table.")]
Model = Annotated[
    str,
    typer.Option(
        help="emoji-clip, open_clip:NAME/WEIGHTS, timm:NAME, transformers:FOLDER, "
        "'diffusers:FOLDER?steps=50', toy, ...; an unknown one lists them."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="emoji-canvas[:SPLIT], a folder of images, a class-per-folder tree, "
        "WebDataset shards ('shards/{000..009}.tar'), torchvision:NAME, hf:PATH, or for models "
        "that read texts prompts.txt or .csv."
    ),
]
Sae = Annotated[
    Path, typer.Argument(help="A folder that holds an SAE, made by train or another library.")
]
OptionalActs = Annotated[
    Path | None, typer.Option("--acts", help="Default: the activations it was trained on.")
]
Targets = Annotated[
    Path | None,
    typer.Option(
        help="Activations of the same images and tokens to write: trains a transcoder.",
        rich_help_panel="Data",
    ),
]
Validation = Annotated[
    Path | None,
    typer.Option(
        "--validate-on",
        help="Activations of the same site on other images: the best weights on them are kept; "
        "with patience=5, training stops after 5 validations without a gain.",
        rich_help_panel="Data",
    ),
]
ValidationTargets = Annotated[
    Path | None,
    typer.Option(
        "--validate-targets",
        help="What a transcoder shall write for the activations of --validate-on.",
        rich_help_panel="Data",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, ... Default: cpu.", rich_help_panel="Machine")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other setting; may be given many times. `vision-sae families` lists them.",
        rich_help_panel="SAE and training",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="A JSON file of settings by the same names; flags win over it.",
        rich_help_panel="SAE and training",
    ),
]


def flag(help: str, *names: str) -> Any:
    """An option of the SAE or the training; its default is told in its help."""
    return typer.Option(*names, help=help, rich_help_panel="SAE and training", show_default=False)


FamilyFlag = Annotated[
    str | None, flag("How codes are made sparse: `vision-sae families`. Default: topk.")
]
K = Annotated[
    int | None, flag("Active latents per row, of families that have it. Default: 16.", "--k")
]
Expansion = Annotated[float | None, flag("Latents per input dimension. Default: 16.")]
Steps = Annotated[int | None, flag("Default: 2000.", "--steps")]
BatchSize = Annotated[int | None, flag("Rows of a step. Default: 4096.")]
Lr = Annotated[float | None, flag("Default: 2e-4 / sqrt(latents / 16384).")]
Centre = Annotated[
    str | None, flag("Start of the decoder bias: median, mean or zero. Default: median.")
]
Seed = Annotated[int | None, flag("Of the first weights and of the order of rows. Default: 0.")]


def given_only(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of options that may be left out: plain values, without enumerations."""
    return {name: _plain(value) for name, value in options.items() if value not in (None, [])}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list) else getattr(value, "value", value)


def settings_from(
    config: Path | None, assignments: Sequence[str] | None, flags: Mapping[str, Any]
) -> dict[str, Any]:
    """All settings that were given. Raises ConfigError for one that is given twice."""
    given = given_only(flags)
    for text in assignments or []:
        name, value = _assignment(text, "--set")
        if name in given:
            raise ConfigError(f"{name} is given twice: {given[name]} and {value}")
        given[name] = parsed(value)
    return (read_json(config) if config else {}) | given


def grid_from(texts: Sequence[str]) -> dict[str, list[Any]]:
    """k=8,16 to {"k": [8, 16]}; lists keep their brackets: nest.ks=[4,8],[8,16]."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, values = _assignment(text, "--grid")
        if name in grid:
            raise ConfigError(f"--grid {name} is given twice")
        grid[name] = [parsed(part) for part in _split(values)]
    return grid


def _assignment(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise ConfigError(f"{option} takes NAME=VALUE; got {text!r}")
    return name.strip().replace("-", "_"), value.strip()


def parsed(text: str) -> Any:
    """A value as JSON where it is JSON, else as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    return [part.strip() for part in re.findall(r"(?:\[[^\]]*\]|\{[^}]*\}|[^,\[{])+", text)]
