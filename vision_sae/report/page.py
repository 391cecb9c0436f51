"""Write a report: a page that opens from disk, with no server and no network."""

import math
from pathlib import Path

from vision_sae.errors import DataError
from vision_sae.files import write_bytes
from vision_sae.report import payload
from vision_sae.report.facts import ReportFacts
from vision_sae.report.files import remove_stale, write_script
from vision_sae.report.html import render
from vision_sae.report.sprites import write_sprites

SCRIPTS = ("dom", "plots", "overview", "pictures", "map", "list", "latent", "main")  # in this order


def write_page(facts: ReportFacts, out: Path) -> Path:
    """Write index.html, data/*.js and sprites/*.webp into `out`; returns the path of index.html.

    Files of an earlier report in `out` are replaced. Raises DataError when a latent shows an image
    that is not among the facts, MissingExtra without jinja2 or pillow.
    """
    _check_images(facts)
    html = _html(facts)  # before anything is written: a missing library leaves no half a report
    sprites = write_sprites([image.thumbnail for image in facts.images], out / "sprites")
    written = {out / "sprites" / name for name in sprites.files}
    written.add(write_script(out / "data" / "images.js", payload.images(facts)))
    written.add(write_script(out / "data" / "overview.js", payload.overview(facts, sprites)))
    written.update(_write_details(facts, out / "data"))
    write_bytes(out / "index.html", html.encode())
    remove_stale(out / "data", "latents-*.js", written)
    remove_stale(out / "sprites", "sheet-*.webp", written)
    return out / "index.html"


def _write_details(facts: ReportFacts, folder: Path) -> list[Path]:
    starts = range(0, len(facts.latents), payload.CHUNK)
    return [
        write_script(
            folder / f"latents-{number}.js",
            [payload.detail(latent) for latent in facts.latents[start : start + payload.CHUNK]],
        )
        for number, start in enumerate(starts)
    ]


def _check_images(facts: ReportFacts) -> None:
    for latent in facts.latents:
        for picture in [*latent.top, *(p for row in latent.quantiles.values() for p in row)]:
            if not 0 <= picture.image < len(facts.images):
                raise DataError(
                    f"latent {latent.id} shows image {picture.image}, "
                    f"but the report has {len(facts.images)} images"
                )


def _html(facts: ReportFacts) -> str:
    return render(
        __package__,
        "page.html",
        title=facts.title,
        provenance=facts.provenance,
        numbers={name: show(value) for name, value in facts.numbers.items()},
        latents=len(facts.latents),
        scripts=[f"{name}.js" for name in SCRIPTS],
    )


def show(value: float) -> str:
    """A number as people write it, to four digits; a dash when there is none."""
    if not math.isfinite(value):
        return "–"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
