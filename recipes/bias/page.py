"""The analysis as a page: what was asked, the plot, and a table."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from vision_sae.errors import claim_folder
from vision_sae.files import write_bytes, write_json
from vision_sae.recipes.bias.analysis import Bias
from vision_sae.recipes.bias.picture import draw_bias
from vision_sae.report.html import render


def as_data(found: Bias) -> dict[str, Any]:
    """For JSON, with what follows from the numbers."""
    effects = [asdict(e) | {"change": e.change, "moved": e.moved} for e in found.effects]
    return asdict(found) | {"effects": effects}


def write_page(found: Bias, out: Path | str, *, overwrite: bool = False) -> Path:
    """Write index.html, bias.svg and bias.json; returns the page.

    A page that is there is replaced. Raises OutputExists where the folder holds something else.
    """
    out = claim_folder(Path(out), "index.html", overwrite=overwrite)
    plot = draw_bias(found)
    page = render(__package__, "bias.html", b=found, plot=plot)
    write_bytes(out / "bias.svg", plot.encode())
    write_json(out / "bias.json", as_data(found))
    write_bytes(out / "index.html", page.encode())
    return out / "index.html"
