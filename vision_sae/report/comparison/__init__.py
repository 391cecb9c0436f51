"""The page of a comparison: a table to sort, and scatter plots; it opens from disk."""

from pathlib import Path
from typing import Any

from vision_sae.files import write_bytes
from vision_sae.jobs.comparison import Comparison
from vision_sae.measures.suite import MEASURES
from vision_sae.report.files import to_json
from vision_sae.report.html import render

SHARED = ("dom", "plots")  # scripts of the report that this page uses too
SCRIPTS = ("scatter", "scores", "main")


def write_comparison(found: Comparison, out: Path) -> Path:
    """Write index.html into `out`, all in one file; returns its path.

    Raises MissingExtra without jinja2.
    """
    count = len(found.entries)
    page = render(
        __package__, "page.html",
        title=f"{count} dictionar{'y' if count == 1 else 'ies'} compared",
        facts=found.facts,
        data=to_json(payload(found)),
        scripts=[f"{name}.js" for name in (*SHARED, *SCRIPTS)],
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "index.html", page.encode())
    return out / "index.html"


def payload(found: Comparison) -> dict[str, Any]:
    """What the scripts read: entries as in the JSON, and of each score what it is."""
    about = {}
    for measure in MEASURES:
        doc = " ".join((measure.run.__doc__ or "").split())
        for name in measure.scores:
            about[name] = {"measure": measure.name, "about": doc}
    better = {n: {"better": way, **about.get(n, {})} for n, way in found.better.items()}
    return {"entries": found.as_dict()["entries"], "scores": better}


__all__ = ["payload", "write_comparison"]
