"""Pages: all over one frame, with files of their own before the shared ones."""

from pathlib import Path

import jinja2
import pytest

from vision_sae.report.html import render, text_of

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for room in ("vision_sae", "recipes")
    for path in (ROOT / room).glob("**/templates/*.html")
    if path.name != "frame.html"
)


def test_a_packages_own_files_come_first() -> None:
    shared, own = text_of("vision_sae.report", "page.html"), "vision_sae.recipes.bottleneck"
    assert text_of(own, "page.html") != shared
    assert text_of(own, "base.css") == text_of("vision_sae.report", "base.css")
    with pytest.raises(FileNotFoundError):
        text_of(own, "none.css")


def test_a_page_is_whole_and_escapes_what_it_is_given() -> None:
    maps = [("<b>", "<svg></svg>")]
    table = type("Table", (), {"measures": ("ua",), "rows": lambda self: []})()
    given = {"title": "1 < 2", "maps": maps, "table": table}
    page = render("vision_sae.recipes.unlearn", "sweep.html", **given)
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "<title>1 &lt; 2</title>" in page and "&lt;b&gt;" in page and "<svg></svg>" in page
    assert text_of("vision_sae.report", "base.css").strip() in page
    with pytest.raises(jinja2.UndefinedError, match="'table' is undefined"):
        render("vision_sae.recipes.unlearn", "sweep.html", title="", maps=[])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_page_is_in_the_frame(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith('{% extends "frame.html" %}') and "<style" not in text
    assert ("document.css" in text) != ("app.css" in text)
