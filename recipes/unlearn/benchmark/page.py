"""The results as a page: tables, and pictures before and after for each method and concept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vision_sae.errors import DataError
from vision_sae.files import write_bytes
from vision_sae.recipes.unlearn.benchmark.tables import tables
from vision_sae.report.html import render


def write_page(
    cells: Sequence[Mapping[str, Any]], out: Path | str, title: str = "EmojiCanvas-Unlearn"
) -> Path:
    """One HTML file that needs no others; gives its path.

    `out` is the file, or a folder for an index.html. Raises DataError for no results, MissingExtra
    without jinja2.
    """
    if not cells:
        raise DataError("there are no results to show; run the benchmark first")
    out = Path(out) if Path(out).suffix in (".html", ".htm") else Path(out) / "index.html"
    html = render(
        __package__, "page.html",
        title=title, tables=tables(cells), concepts=_by_concept(cells),
        settings=cells[0]["settings"],
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, html.encode())
    return out


def _by_concept(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell["kind"] == "one":
            found.setdefault(cell["concepts"][0], []).append(cell)
    return list(found.items())
