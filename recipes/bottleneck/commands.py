"""What the commands of `vision-sae bottleneck` do, between their options and their output."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vision_sae.cli import show
from vision_sae.data import open_data
from vision_sae.errors import ConfigError, claim_folder, claim_new
from vision_sae.model.adapter import load_adapter
from vision_sae.recipes.bottleneck import measures
from vision_sae.recipes.bottleneck.concepts import Concepts, Pool, readers
from vision_sae.recipes.bottleneck.estimator import Bottleneck
from vision_sae.recipes.bottleneck.explain import Explanation
from vision_sae.recipes.bottleneck.files import DESCRIPTION, save
from vision_sae.recipes.bottleneck.inputs import (
    Rows,
    changes_of,
    concepts_for,
    concepts_like,
    concepts_of,
    images_named,
    model_of,
    opened,
    readers_of,
    right_of,
)
from vision_sae.recipes.bottleneck.labels import read_labels, targets_for
from vision_sae.recipes.bottleneck.names import names_of
from vision_sae.recipes.bottleneck.page import write_page

LISTED = 12  # concepts of an explanation in a table


class Fitting(NamedTuple):
    """What a fit reads."""

    rows: Rows
    saes: list[Path]
    labels: str
    pool: Pool = "max"
    validation: str | None = None  # data, or a store's folder where rows are a store
    groups: str | None = None


def fit(job: Fitting, out: Path, settings: dict[str, Any], overwrite: bool, as_json: bool) -> None:
    claim_new(out, DESCRIPTION, "a bottleneck", overwrite=overwrite)
    cbm, saes = Bottleneck(**settings), readers(job.saes)
    found = concepts_for(job.rows, saes, job.pool)
    y = read_labels(job.labels, found.keys, found.about)
    held_out = None
    if job.validation is not None:
        other = concepts_for(_in_place(job.rows, job.validation), saes, job.pool)
        held_out = (other, read_labels(job.labels, other.keys, other.about))
    groups = read_labels(job.groups, found.keys, found.about) if job.groups else None
    total = settings.get("strengths", Bottleneck().strengths)
    with show.progress("fit", total if cbm.head != "adam" else 1, "strengths") as advance:
        cbm.fit(
            found, y, validation=held_out, groups=groups, names=names_of(found.parts),
            tell=lambda n: advance(n, ""),
        )  # fmt: skip
    cbm.about_ = {"data": found.data, "labels": job.labels, "images": len(found)}
    save(cbm, out, overwrite=overwrite)
    _tell_fit(cbm, out, as_json)


def _in_place(rows: Rows, other: str) -> Rows:
    return rows._replace(acts=Path(other)) if rows.acts else rows._replace(data=other)


def _tell_fit(cbm: Bottleneck, out: Path, as_json: bool) -> None:
    chosen = cbm.path_[cbm.chosen_]
    if as_json:
        facts = {"out": str(out), "classes": [str(c) for c in cbm.classes_], "chosen": cbm.chosen_}
        path = [point.as_dict() for point in cbm.path_]
        show.as_json(facts | {"validation": cbm.validation_, "path": path})
        return
    paths = {(p.scale, p.l1_ratio) for p in cbm.path_}
    mine = [p for p in cbm.path_ if (p.scale, p.l1_ratio) == (chosen.scale, chosen.l1_ratio)]
    units = f" in units {chosen.scale}, l1 share {chosen.l1_ratio:g}" if chosen.scale else ""
    show.grid(
        f"{len(cbm.classes_)} classes; path of {len(mine)} strengths{units}"
        + (f", best of {len(paths)} paths" if len(paths) > 1 else "")
        + "; * chosen",
        ["", "strength", "score", "concepts", "per class", "per decision", "gap"],
        [
            ["*" if p is chosen else "", p.strength, p.score, p.concepts, p.per_class,
             p.per_decision, p.gap]
            for p in mine
        ],
    )  # fmt: skip
    told = {f"validation: {name}": value for name, value in cbm.validation_.items()}
    show.table(str(out), told | {"concepts to 95% of a logit": chosen.per_decision})


def predict(folder: Path, rows: Rows, saes: list[Path], as_json: bool) -> None:
    cbm = opened(folder)
    found = concepts_of(cbm, rows, saes)
    p, said = cbm.predict_proba(found), cbm.predict(found)
    best = p.max(1).tolist()
    listed = [
        {"key": key, "predicted": one, "probability": q}
        for key, one, q in zip(found.keys, said, best, strict=True)
    ]
    if as_json:
        show.as_json({"classes": cbm.classes_, "predictions": listed})
        return
    rows_ = [[one["key"], _text(one["predicted"]), one["probability"]] for one in listed]
    show.grid(f"{folder}: {len(found):,} images", ["image", "predicted", "probability"], rows_)


def _text(said: Any) -> str:
    return ", ".join(map(str, said)) if isinstance(said, list) else str(said)


def evaluate(
    folder: Path, rows: Rows, saes: list[Path], labels: str | None, groups: Sequence[str],
    as_json: bool,
) -> None:  # fmt: skip
    cbm = opened(folder)
    found = concepts_of(cbm, rows, saes)
    y = read_labels(labels or cbm.about_.get("labels", "label"), found.keys, found.about)
    numbers = measured(cbm, found, y, groups)
    if as_json:
        show.as_json(numbers)
    else:
        show.table(f"{folder}: {len(found):,} images of {found.data}", numbers)


def measured(
    cbm: Bottleneck, found: Concepts, y: Sequence[Any], groups: Sequence[str] = ()
) -> dict[str, Any]:
    """Accuracy, calibration, concepts per decision; with `groups` (names of what the data knows)
    the worst group's accuracy too."""
    several = cbm.head_.several
    Y = targets_for(y, len(found), cbm.classes_, several).Y
    p = cbm.predict_proba(found)
    numbers: dict[str, Any] = {
        "mean F1" if several else "accuracy": measures.score(p, Y, several=several),
        "log loss": measures.log_loss(p, Y, several=several),
        "ECE": measures.ece(p, Y, several=several),
        "images": len(found),
        "images without a concept": len(found.blank),
        "concepts in use": len(cbm.head_.used),
        "concepts per class": cbm.head_.W.nnz / len(cbm.classes_),
    }
    for of in ("absolute", "positive"):
        for share, mean in cbm.reach(found, of).items():
            numbers[f"concepts to {share} ({of})"] = mean
    if groups:
        parts = [read_labels(group, found.keys, found.about) for group in groups]
        named = [" / ".join(map(str, one)) for one in zip(*parts, strict=True)]
        right = np.array(right_of(cbm, cbm.predict(found), y), dtype=float)
        each = measures.by_group(right, named)
        worst = min(each, key=lambda name: each[name])
        numbers |= {"worst group": worst, "worst group accuracy": each[worst]}
        numbers |= {f"accuracy of {name}": value for name, value in each.items()}
    return numbers


class Question(NamedTuple):
    """Which images to explain, and how."""

    keys: list[str]
    of: str | None = None
    against: str | None = None
    sets: Sequence[str] = ()
    scales: Sequence[str] = ()


def explain(folder: Path, rows: Rows, saes: list[Path], asked: Question, as_json: bool) -> None:
    cbm, changes = opened(folder), changes_of(asked.sets, asked.scales)
    for name in changes:  # refused before anything is computed
        cbm.find(name)
    found = images_named(concepts_of(cbm, rows, saes), asked.keys)
    if not changes:
        told = cbm.explain(found, of=asked.of, against=asked.against)
        if as_json:
            show.as_json([one.as_dict() for one in told])
        for one in () if as_json else told:
            _tell(one)
        return
    edits = [cbm.edit(found.take([i]), changes, asked.of) for i in range(len(found))]
    if as_json:
        show.as_json(
            [
                {"before": e.before.as_dict(), "after": e.after.as_dict(), "flipped": e.flipped,
                 "changed": [list(change) for change in e.changed]}
                for e in edits
            ]
        )  # fmt: skip
    for e in () if as_json else edits:
        _tell(e.before)
        _tell(e.after, "after the change")


def _tell(one: Explanation, note: str = "") -> None:
    lead = f" over {one.against}" if one.against is not None else ""
    title = f"{one.key}: {one.predicted} ({one.probability:.1%}){' ' + note if note else ''}"
    shown = one.contributions[:LISTED]
    rest = sum(c.value for c in one.contributions[LISTED:])
    rows: list[list[Any]] = [
        [c.concept, c.name or "unnamed", c.code, c.weight, c.value] for c in shown
    ]
    if len(one.contributions) > LISTED:
        rows.append(["", f"{len(one.contributions) - LISTED} more", None, None, rest])
    rows += [["", "intercept", None, None, one.intercept]]
    rows += [["", "centring", None, None, one.centring]] if one.centring else []
    rows += [["", f"logit of {one.explained}{lead}", None, None, one.logit]]
    show.grid(title, ["latent", "concept", "code", "weight", "contribution"], rows)


class Correction(NamedTuple):
    """What an edit takes out of a bottleneck, or leaves in it."""

    without: Sequence[str] = ()
    only: Sequence[str] = ()
    like: str | None = None
    least: float = 0.8
    keep: bool = False  # what is like it, in place of removing it
    spurious: str | None = None
    many: bool = False
    refit: bool = False


def edit(
    folder: Path, out: Path, asked: Correction, rows: Rows, saes: list[Path], labels: str | None,
    overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    claim_new(out, DESCRIPTION, "a bottleneck", overwrite=overwrite)
    cbm = opened(folder)
    if not (asked.without or asked.only or asked.like or asked.spurious):
        raise ConfigError("say what to change: --without, --only, --like or --spurious")
    other, found, y = cbm, None, None
    if asked.refit or asked.spurious:
        found = concepts_of(cbm, rows, saes)
        y = read_labels(labels or cbm.about_.get("labels", "label"), found.keys, found.about)
    if asked.without:
        other = other.without(list(asked.without), many=asked.many)
    if asked.only:
        other = other.only(list(asked.only), many=asked.many)
    if asked.like:
        near = concepts_like(cbm, load_adapter(model_of(cbm, rows.model)), asked.like, asked.least)
        change = other.only if asked.keep else other.without
        other = change([one.concept for one in near])
    if asked.spurious and found is not None and y is not None:
        attribute = read_labels(asked.spurious, found.keys, found.about)
        spurious = [a.concept for a in cbm.associations(found, y, attribute) if a.irrelevant]
        other = other.without(spurious)
    gone = [i for i in cbm.head_.used if i not in set(other.head_.used)]
    if asked.refit and found is not None and y is not None:
        with show.progress("fit", cbm.strengths, "strengths") as advance:
            other = other.refit(found, y, tell=lambda n: advance(n, ""))
    save(other, out, overwrite=overwrite)
    rows_ = [[i, cbm.names_.get(i, "unnamed")] for i in gone]
    if as_json:
        removed = [{"concept": i, "name": cbm.names_.get(i)} for i in gone]
        show.as_json({"out": str(out), "removed": removed, "refit": asked.refit})
        return
    show.grid(f"{out}: {len(gone)} of {len(cbm.head_.used)} removed", ["latent", "concept"], rows_)


def page(
    folder: Path, out: Path, rows: Rows, saes: list[Path], labels: str | None, images: int,
    overwrite: bool,
) -> None:  # fmt: skip
    claim_folder(out, "index.html", overwrite=overwrite)
    cbm = opened(folder)
    if rows.data is None:
        raise ConfigError("which images shall the page show? name them by --data")
    found = concepts_of(cbm, rows, saes)
    y = read_labels(labels or cbm.about_.get("labels", "label"), found.keys, found.about)
    adapter, source = load_adapter(model_of(cbm, rows.model)), open_data(rows.data)
    with show.progress("heat", None, "pictures") as advance:
        path = write_page(
            cbm, adapter, source, readers_of(cbm, saes), found, y, out, images=images,
            numbers=tiles(measured(cbm, found, y)), overwrite=overwrite,
            tell=lambda n: advance(n, ""),
        )  # fmt: skip
    show.console.print(f"page: {path}")


def tiles(numbers: dict[str, Any]) -> dict[str, Any]:
    """Those that a page leads with."""
    names = ["accuracy", "mean F1", "ECE", "images", "concepts in use", "concepts per class"]
    names.append("concepts to 95% (absolute)")
    return {name: numbers[name] for name in names if name in numbers}
