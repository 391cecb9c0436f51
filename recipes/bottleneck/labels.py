"""Labels of images: from what the data knows of each, or from a table; and as targets."""

import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vision_sae.errors import DataError, UnknownName
from vision_sae.recipes.bottleneck.solver import Array, Loss

log = logging.getLogger(__name__)
Labelling = Any  # a class per image, or a list of classes: a list or an array
SHOWN = 5  # examples in a message
TABLES = (".csv", ".tsv")


def read_labels(
    spec: str, keys: Sequence[str], about: Sequence[dict[str, Any]]
) -> list[str | list[str]]:
    """A label, or a list of labels, of each image.

    `spec` is a table of key and label (.csv, .tsv; a key may come several times, once per label),
    or the name of something that the data knows of each image: `category`, or `label`, the folder
    of an image in a tree of a folder per class. Raises DataError for images without a label,
    UnknownName for what no image has.
    """
    if spec.lower().endswith(TABLES):
        return _from_table(Path(spec), keys)
    known = sorted({name for one in about for name in one})
    if spec not in known:
        raise UnknownName("label of the images", spec, known)
    missing = [key for key, one in zip(keys, about, strict=True) if one.get(spec) in (None, "")]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(keys)} images have no {spec!r}: {some_of(missing)}"
        )
    found = [one[spec] for one in about]
    if any(isinstance(one, list) for one in found):
        return [[str(v) for v in (one if isinstance(one, list) else [one])] for one in found]
    return [str(one) for one in found]


def _from_table(path: Path, keys: Sequence[str]) -> list[str | list[str]]:
    table = _rows_of(path)
    missing, wanted = [key for key in keys if key not in table], set(keys)
    extra = [key for key in table if key not in wanted]
    if missing:
        raise DataError(
            f"{path} does not match the images: {len(missing)} of {len(keys)} images have no label "
            f"({some_of(missing)}), {len(extra)} of {len(table)} labels no image"
            + (f" ({some_of(extra)})" if extra else "")
        )
    if extra:
        log.warning("%s: %d labels of no image: %s", path, len(extra), some_of(extra))
    if any(len(table[key]) > 1 for key in keys):
        return [table[key] for key in keys]
    return [table[key][0] for key in keys]


def _rows_of(path: Path) -> dict[str, list[str]]:
    """Raises DataError for a table that is not there, or without the columns."""
    if not path.is_file():
        raise DataError(f"no table of labels {path}: it has the columns key and label")
    with path.open(encoding="utf-8", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        rows = csv.DictReader(file, delimiter=delimiter)
        if not {"key", "label"} <= set(rows.fieldnames or ()):
            raise DataError(
                f"{path} needs the columns key and label; it has "
                f"{', '.join(rows.fieldnames or ()) or 'none'}"
            )
        table: dict[str, list[str]] = {}
        for row in rows:
            if row["key"] and row["label"]:
                table.setdefault(row["key"].strip(), []).append(row["label"].strip())
    return table


def some_of(names: Sequence[Any]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(str(name) for name in names[:SHOWN]) + more


# ---- as targets


@dataclass(frozen=True)
class Targets:
    """Classes, and Y [n c]: one-hot, or multi-hot where images may have several labels."""

    classes: list[Any]
    Y: Array
    several: bool

    @property
    def loss(self) -> Loss:
        return "sigmoid" if self.several else "softmax"

    @property
    def y(self) -> Any:
        """Class numbers [n] of single labels."""
        return self.Y.argmax(1)


def is_several(y: Labelling) -> bool:
    return any(isinstance(one, (list, tuple, set, frozenset)) for one in y)


def targets_of(y: Labelling, n: int) -> Targets:
    """For fitting. Raises DataError for other than n labels, a single class or example of one."""
    rows, several = _as_lists(y, n)
    counts = Counter(one for row in rows for one in row)
    classes = sorted(counts, key=str)
    if len(classes) < 2 and not several:
        raise DataError(
            f"a classifier needs two classes or more; all labels are {some_of(classes)}"
        )
    rare = [one for one in classes if counts[one] < 2]
    if rare:
        raise DataError(
            f"{len(rare)} of {len(classes)} classes have one example, and each needs two, one to "
            f"fit and one to choose by: {some_of(rare)}"
        )
    every = [one for one in classes if counts[one] == n]
    if several and every:
        raise DataError(f"every image has {some_of(every)}: there is nothing to tell apart")
    return Targets(classes, _hot(rows, classes), several)


def targets_for(y: Labelling, n: int, classes: Sequence[Any], several: bool) -> Targets:
    """For scoring, with known classes. Raises DataError for classes not seen in fitting."""
    rows, _ = _as_lists(y, n)
    counts = Counter(one for row in rows for one in row if one not in set(classes))
    if counts:
        named = [f"{name} ({count} images)" for name, count in counts.most_common()]
        raise DataError(
            f"{len(counts)} classes were not seen in fitting: {some_of(named)}; "
            f"it knows {some_of(list(classes))}"
        )
    return Targets(list(classes), _hot(rows, classes), several)


def _as_lists(y: Labelling, n: int) -> tuple[list[list[Any]], bool]:
    y = y.tolist() if isinstance(y, np.ndarray) else list(y)
    if len(y) != n:
        raise DataError(f"{len(y)} labels for {n} images: each image needs its own")
    several = is_several(y)
    return [list(one) if several and not isinstance(one, str) else [one] for one in y], several


def _hot(rows: list[list[Any]], classes: Sequence[Any]) -> Array:
    number = {name: i for i, name in enumerate(classes)}
    Y = np.zeros((len(rows), len(classes)))
    for i, row in enumerate(rows):
        Y[i, [number[one] for one in row]] = 1
    return Y


# ---- validation


def held_out(
    names: Sequence[str], targets: Targets, share: float = 0.2, groups: Sequence[Any] | None = None
) -> Any:
    """A mask [n] of images to choose by: of each class, those whose key's hash is smallest.

    Images of one group (say, pictures of one thing) stay on one side. Every class keeps an example
    on the other side.
    """
    units = [str(g) for g in (groups if groups is not None else names)]
    classes = targets.Y.argmax(1) if targets.Y.shape[1] else np.zeros(len(units))
    members: dict[int, dict[str, None]] = {}
    seen: set[str] = set()
    for unit, one in zip(units, classes.tolist(), strict=True):
        if unit not in seen:
            seen.add(unit)
            members.setdefault(one, {})[unit] = None
    chosen = {u for some in members.values() for u in _smallest(some, share)}
    mask = np.array([unit in chosen for unit in units])
    for bare in np.flatnonzero(targets.Y[~mask].sum(0) == 0):
        has = {u for u, y in zip(units, targets.Y[:, bare], strict=True) if y and u in chosen}
        mask &= np.array([unit != min(has, key=_hash) for unit in units])
    return mask


def _smallest(units: Iterable[str], share: float) -> list[str]:
    ordered = sorted(units, key=_hash)
    return ordered[: min(round(share * len(ordered)), len(ordered) - 1)]


def _hash(unit: str) -> bytes:
    return hashlib.sha256(unit.encode()).digest()
