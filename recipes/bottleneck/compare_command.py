"""`vision-sae bottleneck compare`: a bottleneck and its baselines on the same split."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from vision_sae.cli import show
from vision_sae.cli.options import Json, Overwrite
from vision_sae.errors import OutputExists

COLUMNS = ["method", "accuracy", "worst group", "concepts to 95%", "in use", "ECE", "chosen"]


def compare(
    task: Annotated[
        str,
        typer.Option(
            help="canvas-category, canvas-style, canvas-skin-tone, canvas-concept, "
            "canvas-spurious-ground, canvas-spurious-style, digits; with your data "
            "cifar10?root=DIR, cifar100, places365, imagenet, cub, waterbirds, or folder?root=DIR "
            "of train/, val/ and test/ with a folder per class."
        ),
    ],
    sae: Annotated[list[Path], typer.Option(help="An SAE's folder; several are put side by side.")],
    model: Annotated[
        str | None, typer.Option(help="Default: the one that the SAE was trained on.")
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Words of the other bottlenecks, one a line. Default: frequent words."),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only these, by name; may be given many times.")
    ] = None,
    pool: Annotated[str, typer.Option(help="Over an image's tokens: max, mean or cls.")] = "max",
    budget: Annotated[
        float, typer.Option(help="Concepts that a decision of a bottleneck may take on average.")
    ] = 25,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a forward pass.")] = 64,
    out: Annotated[Path | None, typer.Option(help="A folder for results.json.")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Fit a bottleneck and its baselines on a task, choose on validation, and compare on test.

    The baselines: linear probes, zero-shot, a bottleneck of given words (LF-CBM), and of a sparse
    decomposition over a vocabulary (SpLiCE).

    Example: `vision-sae bottleneck compare --task canvas-spurious-ground --sae sae/`

    Example: `vision-sae bottleneck compare --task 'cifar10?root=data' --model open_clip:RN50/openai
    --sae sae-rn50/ --out cifar10/`
    """
    with show.errors():
        if out is not None and (out / "results.json").exists() and not overwrite:
            raise OutputExists(f"{out} holds results; choose another folder or pass --overwrite")
        rows = _rows(task, sae, model, vocabulary, method or [], pool, budget, batch_size)
        if out is not None:
            from vision_sae.files import write_json

            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "results.json", {"task": task, "rows": rows})
        if json:
            show.as_json(rows)
        else:
            show.grid(f"{task}: test", COLUMNS, [_line(row) for row in rows])


def _advance(advance: show.Advance, images: int) -> None:
    advance(images, "")


def _line(row: dict[str, Any]) -> list[Any]:
    names = ("method", "accuracy", "worst_group", "per_decision", "concepts", "ECE", "chosen")
    return [row[name] for name in names]


def _rows(
    name: str, saes: list[Path], model: str | None, vocabulary: Path | None, methods: list[str],
    pool: Any, budget: float, batch_size: int,
) -> list[dict[str, Any]]:  # fmt: skip
    from vision_sae.model.adapter import load_adapter
    from vision_sae.naming import frequent_words, read_vocabulary
    from vision_sae.recipes.bottleneck.compare import METHODS, SETTINGS, compare, see, texts_of
    from vision_sae.recipes.bottleneck.concepts import readers
    from vision_sae.recipes.bottleneck.tasks import PARTS, open_task

    task, read = open_task(name), readers(saes)
    known = read[0].sae.provenance
    adapter = load_adapter(model or (known.model if known else ""))
    parts = {}
    for part in PARTS:
        here = task.part(part)
        with show.progress(part, len(here), "images") as advance:
            told = partial(_advance, advance)
            parts[part] = see(adapter, here, read, pool=pool, batch_size=batch_size, tell=told)
    words = read_vocabulary(vocabulary) if vocabulary else frequent_words(2_000)
    texts = texts_of(adapter, task, words.words)
    rows = compare(
        parts, texts, methods=methods or METHODS, settings={**SETTINGS, "budget": budget},
        tell=lambda method: show.console.print(f"fitting: {method}"),
    )  # fmt: skip
    return [row.as_dict() for row in rows]
