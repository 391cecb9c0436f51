"""`vision-sae compare`: options, progress, and the table at the end."""

from pathlib import Path
from typing import Annotated

import typer

from vision_sae.cli import show
from vision_sae.cli.options import Acts, Json, Overwrite
from vision_sae.errors import ConfigError, claim_folder
from vision_sae.files import write_json
from vision_sae.jobs.comparison import Comparison, compare, count_of
from vision_sae.measures.suite import MEASURES
from vision_sae.model.adapter import load_adapter
from vision_sae.report.comparison import write_comparison
from vision_sae.store import Store

# of the table in the terminal; the page and the JSON have all
COLUMNS = (
    "l0", "fvu", "cosine", "dead", "cknna", "zero_shot", "probe_agreement", "monosemanticity",
    "uniqueness", "stability", "morans_i",
)  # fmt: skip
PAGE, JSON, CACHE = "index.html", "comparison.json", "cache"


WHAT = "What to measure"

Saes = Annotated[
    list[Path] | None,
    typer.Argument(
        help="SAEs of one site: folders made by train or another library; a sweep's folder "
        "stands for all of its members.",
        show_default=False,
    ),
]
ValidateOn = Annotated[
    Path | None,
    typer.Option(
        help="Activations of the same site on other images: what is measured. Without it a "
        "fifth of --acts is held out of probes and baselines.",
        rich_help_panel="Data",
    ),
]
Baselines = Annotated[
    str,
    typer.Option(
        help="Fitted to --acts and measured alike: neurons, pca, ica, nmf, semi-nmf, kmeans, "
        "random, supervised. pca:16 keeps the 16 largest codes of each row.",
        rich_help_panel=WHAT,
    ),
]
Measures = Annotated[
    str | None,
    typer.Option(
        help="Some measures only, such as reconstruction,cknna; --list names them.",
        rich_help_panel=WHAT,
    ),
]
Embeddings = Annotated[
    Path | None,
    typer.Option(
        help="Activations of another model on the images that are measured: its view of them, "
        "for MonoSemanticity.",
        rich_help_panel=WHAT,
    ),
]
Splice = Annotated[
    int,
    typer.Option(
        min=0,
        help="Splice reconstructions of so many images into the model: zero-shot accuracy.",
        rich_help_panel=WHAT,
    ),
]
Label = Annotated[
    str | None,
    typer.Option(
        help="What says which class an image is of. Default: label, else category.",
        rich_help_panel=WHAT,
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="At most so many images of each store. Default: 131,072 rows.",
        rich_help_panel=WHAT,
    ),
]
Latents = Annotated[
    int | None,
    typer.Option(
        min=1, help="Width of k-means and random. Default: the SAEs' median.", rich_help_panel=WHAT
    ),
]
Seed = Annotated[int, typer.Option(help="Of baselines.", rich_help_panel=WHAT)]
Out = Annotated[
    Path | None,
    typer.Option(help="A folder for the page; what was measured is kept there for next time."),
]
List = Annotated[bool, typer.Option("--list", help="List the measures and stop.")]


def run(
    saes: Saes = None,
    acts: Acts = Path("acts"),
    validate_on: ValidateOn = None,
    baselines: Baselines = "",
    measures: Measures = None,
    embeddings: Embeddings = None,
    splice: Splice = 0,
    label: Label = None,
    images: Images = None,
    latents: Latents = None,
    seed: Seed = 0,
    out: Out = None,
    list_: List = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Measure SAEs of one site, ours or others', beside baselines: one table, one page, one JSON.

    Example: `vision-sae compare sweep/ sae/ --acts acts/ --validate-on held-out/
    --baselines pca:16,kmeans,random --out page/`
    """
    with show.errors():
        if list_:
            list_measures(json)
            return
        if out is not None:
            claim_folder(out, PAGE, CACHE, overwrite=overwrite)
        names, others, store = _split(measures), _split(baselines) or [], Store(acts)
        total = count_of(saes or [], others, names)
        adapter = load_adapter(store.index.provenance.model) if splice else None
        with show.progress("compare", total, "measures") as advance:
            found = compare(
                saes or [], store, validation=validate_on, baselines=others, measures=names,
                embeddings=embeddings, adapter=adapter, splice_images=splice, label=label,
                images=images, latents=latents, seed=seed, cache=out / CACHE if out else None,
                tell=lambda subject, measure: advance(1, f"{subject}  {measure}"),
            )  # fmt: skip
        _tell(found, out, json)


def _split(text: str | None) -> list[str] | None:
    """a,b to names. Raises ConfigError for an empty one."""
    if not text:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f"names with commas between them are needed; got {text!r}")
    return names


def _tell(found: Comparison, out: Path | None, as_json: bool) -> None:
    if out is not None:
        write_json(out / JSON, found.as_dict())
        page = write_comparison(found, out)
        show.console.print(f"page: {page}")
    if as_json:
        show.as_json(found.as_dict())
        return
    shown = [
        c for c in COLUMNS if any(c in e.scores and e.scores[c].defined for e in found.entries)
    ][: max(3, (show.results.width - 44) // 10)]  # as many as fit; the page has all
    rows = [
        [
            e.name,
            e.family,
            e.latents,
            *(e.scores[c].value if e.scores[c].defined else "–" for c in shown),
        ]
        for e in found.entries
    ]
    show.grid(f"measured on {found.facts['measured on']}", ["", "family", "latents", *shown], rows)
    if "left out" in found.facts:
        show.console.print(f"left out: {found.facts['left out']}", style="yellow")
    for name, reason in _without(found).items():
        show.console.print(f"{name}: {reason}", style="dim")


def _without(found: Comparison) -> dict[str, str]:
    """Scores that nothing has, and why."""
    reasons = {}
    for name in found.better:
        scores = [entry.scores[name] for entry in found.entries]
        if not any(score.defined for score in scores):
            reasons[name] = str(scores[0].reason)
    return reasons


def list_measures(as_json: bool) -> None:
    """Every measure with its scores, what it needs, and its docstring."""
    if as_json:
        show.as_json(
            {
                m.name: {"scores": dict(m.scores), "needs": list(m.needs), "about": m.run.__doc__}
                for m in MEASURES
            }
        )
        return
    rows = []
    for m in MEASURES:
        needs = f"\nneeds {', '.join(m.needs)}" if m.needs else ""
        about = " ".join((m.run.__doc__ or "").split())
        rows.append([m.name, f"{', '.join(m.scores)}{needs}\n{about}"])
    show.grid("measures", ["measure", "scores, and what they are"], rows)
