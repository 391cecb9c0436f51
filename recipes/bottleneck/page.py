"""A page that shows why a bottleneck decides as it does, on which concepts can be switched off."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vision_sae.data import ImageSource
from vision_sae.errors import DataError, claim_folder
from vision_sae.files import write_bytes
from vision_sae.model.adapter import Adapter
from vision_sae.recipes.bottleneck.concepts import Concepts, Reader
from vision_sae.recipes.bottleneck.estimator import Bottleneck
from vision_sae.recipes.bottleneck.heat import heats
from vision_sae.recipes.bottleneck.labels import targets_for
from vision_sae.report.files import remove_stale, write_script
from vision_sae.report.gather import thumbnail
from vision_sae.report.heat import Heats, Wanted
from vision_sae.report.html import render
from vision_sae.report.page import show
from vision_sae.report.payload import quantise
from vision_sae.report.sprites import write_sprites

EXPLAINED, SHOWN, EXAMPLES, PER_CLASS = 48, 6, 6, 8
SCRIPTS = ("dom", "pictures")  # of the report, before our own
Tell = Callable[[int], None]


def write_page(
    cbm: Bottleneck,
    adapter: Adapter,
    source: ImageSource,
    saes: Sequence[Reader],
    found: Concepts,
    y: Sequence[Any],
    out: Path | str,
    *,
    numbers: dict[str, Any] | None = None,
    images: int = EXPLAINED,
    overwrite: bool = False,
    tell: Tell = lambda images: None,
) -> Path:
    """Write index.html, data/*.js and sprites/*.webp into `out`; returns the path of index.html.

    `found` are the concepts of the source's images, `y` their labels. Some images of every class
    are explained, wrong ones first. Raises OutputExists, and DataError when the source has changed.
    """
    out = claim_folder(Path(out), "index.html", overwrite=overwrite)
    targets = targets_for(y, len(found), cbm.classes_, cbm.head_.several)
    cards = _cards(cbm.predict_proba(found), targets.Y, images)
    examples = _examples(cbm, found)
    wanted = _wanted(cbm, found, cards, examples)
    shown = _pictures(source, found, sorted(wanted))
    warm = heats(adapter, source, saes, shown, wanted, tell)
    place = {image: n for n, (image, _) in enumerate(shown)}
    data = {
        **_head(cbm, found, examples, place, warm),
        "cards": [_card(cbm, found, i, place, warm) for i in cards],
        "rows": _rows(cbm, found, targets.Y),
        "path": [p.as_dict() for p in cbm.path_],
        "chosen": cbm.chosen_,
    }
    sprites = write_sprites([thumbnail(picture) for _, picture in shown], out / "sprites")
    written = {out / "sprites" / name for name in sprites.files}
    about = [[found.keys[i], str(found.about[i].get("caption") or found.keys[i])] for i, _ in shown]
    write_script(out / "data" / "images.js", about)
    write_script(out / "data" / "overview.js", {**data, "sprites": sprites._asdict()})
    write_bytes(out / "index.html", _html(cbm, found, numbers or {}).encode())
    remove_stale(out / "sprites", "sheet-*.webp", written)
    return out / "index.html"


def _cards(p: Any, Y: Any, images: int) -> list[int]:
    """Images to explain: of every class the surest mistakes, then right ones, sure to unsure."""
    sure, right = p.max(1), (p.argmax(1) == Y.argmax(1))
    each = max(2, images // Y.shape[1])
    chosen: list[int] = []
    for c in range(Y.shape[1]):
        mine = np.flatnonzero(Y[:, c])
        wrong = sorted(mine[~right[mine]], key=lambda i: -sure[i])[: each // 2]
        good = sorted(mine[right[mine]], key=lambda i: -sure[i])
        steps = np.linspace(0, max(0, len(good) - 1), max(1, each - len(wrong))).astype(int)
        chosen += [int(i) for i in wrong] + [int(good[i]) for i in dict.fromkeys(steps) if good]
    return list(dict.fromkeys(chosen))[: max(images, Y.shape[1])]


def _examples(cbm: Bottleneck, found: Concepts) -> dict[int, list[int]]:
    """The images on which each concept in use is strongest."""
    columns, best = found.codes.tocsc(), {}
    for s in cbm.head_.used:
        part = slice(columns.indptr[s], columns.indptr[s + 1])
        order = np.argsort(-columns.data[part], kind="stable")[:EXAMPLES]
        best[s] = [int(i) for i in columns.indices[part][order]]
    return best


def _wanted(
    cbm: Bottleneck, found: Concepts, cards: Sequence[int], examples: dict[int, list[int]]
) -> Wanted:
    wanted: Wanted = {i: {} for i in cards}
    for i, one in zip(cards, cbm.explain(found.take(cards)), strict=True):
        wanted[i] |= {c.concept: c.code for c in one.contributions[:SHOWN]}
    for s, rows in examples.items():
        for i in rows:
            wanted.setdefault(i, {})[s] = float(found.codes[i, s])
    return wanted


def _pictures(source: ImageSource, found: Concepts, images: Sequence[int]) -> list[tuple[int, Any]]:
    number = {found.keys[i]: i for i in images}
    shown = [(number[item.key], item.open()) for item in source.items() if item.key in number]
    if len(shown) != len(images):
        raise DataError(f"{source.name} has changed: {len(images) - len(shown)} images are gone")
    return shown


# ---- as data


def _head(
    cbm: Bottleneck, found: Concepts, examples: dict[int, list[int]], place: dict[int, int],
    warm: Heats,
) -> dict[str, Any]:  # fmt: skip
    head, W = cbm.head_, cbm.head_.W.toarray()[:, cbm.head_.used]
    number = {s: n for n, s in enumerate(head.used)}
    columns = found.codes.tocsc()
    concepts = [
        {
            "id": s,
            "name": cbm.names_.get(s),
            "mean": float(head.m[s]),
            "weights": W[:, n].tolist(),
            "largest": float(columns[:, [s]].max()) if columns.shape[0] else 0.0,
            "examples": [_shot(s, i, found, place, warm) for i in examples[s]],
        }
        for n, s in enumerate(head.used)
    ]
    listed = cbm.class_concepts(found, PER_CLASS)
    return {
        "classes": [str(c) for c in head.classes],
        "several": head.several,
        "temperature": head.temperature,
        "intercept": head.b.tolist(),
        "concepts": concepts,
        "listed": [
            [{"concept": number[c.concept], "mean": c.mean, "images": c.images} for c in some]
            for some in listed.values()
        ],
    }


def _shot(s: int, i: int, found: Concepts, place: dict[int, int], warm: Heats) -> dict[str, Any]:
    value = float(found.codes[i, s])
    heat = warm.get((s, i))
    full = max((max(row) for row in heat), default=0.0) if heat else 0.0
    return {"image": place[i], "value": value, "heat": quantise(heat, full) if heat else None}


def _card(
    cbm: Bottleneck, found: Concepts, i: int, place: dict[int, int], warm: Heats
) -> dict[str, Any]:
    number = {s: n for n, s in enumerate(cbm.head_.used)}
    one = cbm.explain(found.take([i]))[0]
    shots = {number[c.concept]: _shot(c.concept, i, found, place, warm)["heat"]
             for c in one.contributions[:SHOWN]}  # fmt: skip
    return {"row": i, "image": place[i], "heats": shots, "reach": one.reach}


def _rows(cbm: Bottleneck, found: Concepts, Y: Any) -> list[list[Any]]:
    """[[true classes], [concept, code, concept, code, ...]] of each image, for the page's own sums;
    every image on a page is among them."""
    number = {s: n for n, s in enumerate(cbm.head_.used)}
    rows = []
    for i in range(len(found)):
        row = found.codes[[i]].tocsr()
        pairs = [(number[s], v) for s, v in zip(row.indices, row.data, strict=True) if s in number]
        rows.append([np.flatnonzero(Y[i]).tolist(), [x for pair in pairs for x in pair]])
    return rows


def _html(cbm: Bottleneck, found: Concepts, numbers: dict[str, Any]) -> str:
    return render(
        __package__,
        "page.html",
        title=_title(cbm),
        provenance=_provenance(cbm, found),
        numbers={
            name: show(value) if isinstance(value, (int, float)) else value
            for name, value in numbers.items()
        },
        scripts=[f"{name}.js" for name in (*SCRIPTS, "page")],
    )


def _title(cbm: Bottleneck) -> str:
    what = Path(str(cbm.about_.get("labels", "the class"))).stem
    return f"How {what} is decided"


def _provenance(cbm: Bottleneck, found: Concepts) -> dict[str, str]:
    known = [part.provenance for part in cbm.parts_ if part.provenance]
    told = {"images": found.data, "labels": str(cbm.about_.get("labels", ""))}
    if known:
        told["model"] = known[0].model
        told["sites"] = ", ".join(f"{p.site} ({p.tokens})" for p in known)
    if cbm.parts_:
        told["pooled by"] = cbm.parts_[0].pool
    told["fitted on"] = str(cbm.about_.get("data", ""))
    return {name: value for name, value in told.items() if value}
