"""Pages: one HTML file each, from a template over the frame that all of them share."""

from functools import partial
from importlib import resources
from typing import Any

from vision_sae.errors import require


def render(package: str, name: str, **given: Any) -> str:
    """A page from a package's `templates`, which extends "frame.html" and fills its blocks.

    Templates read style sheets by `file`: of their own package, or those of this room: "base.css",
    which every page has, "document.css" of pages to read, "app.css" of pages to click through.
    Raises MissingExtra without jinja2.
    """
    jinja = require("jinja2", "report")
    find = partial(text_of, package)
    environment = jinja.Environment(
        loader=jinja.FunctionLoader(find), undefined=jinja.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["file"] = find
    page: str = environment.get_template(name).render(**given)
    return page


def text_of(package: str, name: str) -> str:
    """A file of a package's `templates`, or else of this room's. Raises FileNotFoundError."""
    file = resources.files(package) / "templates" / name
    if not file.is_file():
        file = resources.files(__package__) / "templates" / name
    return file.read_text(encoding="utf-8")
