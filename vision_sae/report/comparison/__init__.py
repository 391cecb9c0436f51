"""The page of a comparison: a table to sort, and scatter plots; it opens from disk."""

from importlib import resources
from pathlib import Path
from typing import Any

from vision_sae.errors import require
from vision_sae.files import write_bytes
from vision_sae.jobs.comparison import Comparison
from vision_sae.measures.suite import MEASURES
from vision_sae.report.files import to_json

SHARED = ("dom", "plots")  # scripts of the report that this page uses too
SCRIPTS = ("scatter", "scores", "main")


def write_comparison(found: Comparison, out: Path) -> Path:
    """Write index.html into `out`, all in one file; returns its path.

    Raises MissingExtra without jinja2.
    """
    environment = require("jinja2", "report").Environment(autoescape=True, trim_blocks=True)
    report, mine = "vision_sae.report", __package__
    scripts = [_template(report, f"{name}.js") for name in SHARED]
    scripts += [_template(mine, f"{name}.js") for name in SCRIPTS]
    page: str = environment.from_string(_template(mine, "page.html")).render(
        title=f"{len(found.entries)} dictionaries compared",
        facts=found.facts,
        style=_template(report, "style.css") + _template(mine, "style.css"),
        data=to_json(payload(found)),
        script="\n".join(scripts),
    )
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


def _template(package: str, name: str) -> str:
    return (resources.files(package) / "templates" / name).read_text(encoding="utf-8")


__all__ = ["payload", "write_comparison"]
