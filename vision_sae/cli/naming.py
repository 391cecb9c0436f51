"""What `vision-sae name` does, between its options and its output."""

from enum import StrEnum
from typing import Annotated, NamedTuple

import typer

from vision_sae import jobs, naming
from vision_sae.cli import show
from vision_sae.cli.steps import Opened
from vision_sae.data import ImageSource, open_data
from vision_sae.measures.factors import Detection
from vision_sae.model.adapter import load_adapter
from vision_sae.naming import UNNAMED, Name


class Ways(StrEnum):
    auto = "auto"
    decoder = "decoder"
    images = "images"
    splice = "splice"


Vocabulary = Annotated[
    str | None,
    typer.Option(
        metavar="words|emoji|FILE",
        help="The 20,000 most frequent English words, the names and keywords of emoji, or a file "
        "with a word or phrase per line. Default: the images' names.",
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(help="As in 'a photo of a {}'; may be given many times, and is then averaged."),
]
Directions = Annotated[
    Ways,
    typer.Option(
        help="Where a latent points: its atom (SAEs on the model's embeddings), the mean of its "
        "top images, or what adding its atom does to images. auto: decoder where it can be, else "
        "images."
    ),
]
Threshold = Annotated[float, typer.Option(help="Cosine below which a latent is unnamed.")]
Candidates = Annotated[
    int,
    typer.Option(help="Of so many nearest words, the one that best detects the images. 1: cosine."),
]
ExplainerName = Annotated[
    str | None,
    typer.Option(metavar="NAME[:ARGUMENT]", help="A plugin that names latents by their pictures."),
]
Test = Annotated[
    str | None,
    typer.Option(
        metavar="DATA", help="Images to test names on. Default: a fifth of those of --acts."
    ),
]


class Words(NamedTuple):
    """Where names come from, and other images to test them on, opened before any work."""

    vocabulary: naming.Vocabulary | None = None
    explainer: naming.Explainer | None = None
    test: ImageSource | None = None


def words(vocabulary: str | None, explainer: str | None, test: str | None) -> Words:
    """Opened, with a warning of what a vocabulary leaves out."""
    opened = jobs.open_vocabulary(vocabulary) if vocabulary else None
    if opened and opened.left_out():
        show.console.print(f"warning: {opened.left_out()}", style="yellow")
    return Words(
        opened,
        naming.load_explainer(explainer) if explainer else None,
        open_data(test) if test else None,
    )


def name(
    opened: Opened, words: Words, config: jobs.NamingConfig, as_json: bool
) -> dict[str, float]:
    """Name, test, save, show."""
    folder, sae, store, found = opened
    adapter = load_adapter(store.index.provenance.model)
    with show.stages() as tell:
        named = jobs.name_sae(
            adapter, store, found, words.vocabulary, sae=sae, explainer=words.explainer,
            test=words.test, config=config, tell=tell,
        )  # fmt: skip
    detections = jobs.detect_factors(store, found)
    jobs.save_findings(folder, named, detections)
    numbers = jobs.summary_of(named.names, detections)
    if as_json:
        show.as_json({"summary": numbers, **jobs.findings_as_data(named, detections)})
        return numbers
    _show(named.names, detections)
    how = named.how
    show.table(f"{folder}: {len(named.names):,} live latents", numbers)
    show.console.print(
        f"from {how['vocabulary']}, directions by {how['directions']}; "
        f"named on {how['named on']}, tested on {how['tested on']}"
    )
    return numbers


def _show(names: list[Name], detections: list[Detection]) -> None:
    """The names that detect best (those of largest score where none could be tested), and what
    their latents detect among known factors."""
    known = {d.latent: f"{d.factor} = {d.value}, F1 {d.f1:.2f}" for d in detections}
    tested = [n for n in names if n.auroc is not None]
    best = sorted(tested or names, key=lambda n: -(n.auroc or n.score))
    rows = [
        (n.latent, n.name, n.score, n.runner_up, n.margin, n.auroc, n.positives,
         known.get(n.latent, ""))
        for n in best[:10]
    ]  # fmt: skip
    columns = ("latent", "name", "score", "runner-up", "margin", "AUROC", "images", "detects")
    if rows:
        title = "names that detect best" if tested else "names of largest score, none tested"
        show.grid(title, columns, rows)
    unnamed = sum(n.name == UNNAMED for n in names)
    if unnamed:
        show.console.print(f"{unnamed:,} of {len(names):,} live latents are unnamed")
