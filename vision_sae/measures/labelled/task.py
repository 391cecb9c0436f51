"""Which images have which factor values, and which images are held out to report on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vision_sae.errors import DataError, UnknownName
from vision_sae.measures.factors import NOT_FACTORS, Labels, folds, labels_of

AND = " & "  # joins the names of a conjunction


@dataclass(frozen=True)
class Task:
    """Every value has train and test images that have it, and some that have it not.

    `left_out` names the others, and why.
    """

    names: list[tuple[str, str]]
    members: Bool[Tensor, "n v"]
    test: Bool[Tensor, " n"]
    left_out: dict[str, str]

    @property
    def train(self) -> Bool[Tensor, " n"]:
        return ~self.test

    @property
    def factors(self) -> list[str]:
        return list(dict.fromkeys(factor for factor, _ in self.names))

    def columns(self, factor: str) -> list[int]:
        """The numbers of a factor's values. Raises UnknownName."""
        found = [i for i, (name, _) in enumerate(self.names) if name == factor]
        if not found:
            raise UnknownName("factor", factor, self.factors)
        return found

    def classes(self, factor: str) -> Int[Tensor, " n"]:
        """Which of `columns(factor)` each image has, -1 for none.

        Raises DataError for a factor of which an image has several values.
        """
        members = self.members[:, self.columns(factor)]
        if bool((members.sum(1) > 1).any()):
            raise DataError(f"some images have several values of {factor}; classes need one")
        return torch.where(members.any(1), members.int().argmax(1), -1)

    def only(self, columns: Sequence[int]) -> "Task":
        """Some values only."""
        names = [self.names[i] for i in columns]
        return Task(names, self.members[:, list(columns)], self.test, self.left_out)

    def by_factor(self, numbers: Float[Tensor, " v"]) -> dict[str, float]:
        """The mean of a number over the values of each factor, NaN left out."""
        means = {f: numbers[self.columns(f)].nanmean() for f in self.factors}
        return {factor: float(mean) for factor, mean in means.items()}


def task(labels: Labels, test: Bool[Tensor, " n"], *, least: int = 5) -> Task:
    """The values that at least `least` train images and one test image have, and one has not.

    Raises DataError when no value is left, or the split is of other images.
    """
    if len(test) != labels.images:
        raise DataError(f"the split is of {len(test)} images, the labels of {labels.images}")
    members = torch.zeros(labels.images, len(labels.names), dtype=torch.bool)
    members[labels.image, labels.value] = True
    have = torch.stack([members[~test].sum(0), members[test].sum(0)])
    sizes = torch.tensor([[int((~test).sum())], [int(test.sum())]])
    short = [_why(*column) for column in torch.cat([have, sizes - have]).T.tolist()]
    short = [
        why or (f"{train} train images, {least} needed" if train < least else "")
        for why, train in zip(short, have[0].tolist(), strict=True)
    ]
    kept = [i for i, why in enumerate(short) if not why]
    left_out = {"=".join(labels.names[i]): why for i, why in enumerate(short) if why}
    if not kept:
        raise DataError(
            f"none of {len(short)} factor values has {least} train images and a test image"
        )
    return Task([labels.names[i] for i in kept], members[:, kept], test, left_out)


def _why(train: int, test: int, train_without: int, test_without: int) -> str:
    """What is missing for a value to be told apart on both sides of the split."""
    missing = {"train": train, "test": test, "other train": train_without, "other": test_without}
    return ", ".join(f"no {name} image" for name, number in missing.items() if not number)


def properties(
    about: Sequence[dict[str, Any]],
    *,
    factors: Sequence[str] | None = None,
    cross: Sequence[tuple[str, str]] = (),
    least: int = 20,
    most: int = 100,
) -> Labels:
    """The factor values to look for, and conjunctions `cross` of two factors.

    `factors` are those named; else all whose values are single (no lists) and at most `most`.
    A value counts from `least` images. Raises UnknownName for a factor that no image has,
    DataError when nothing is left.
    """
    known = {key for row in about for key in row}
    for name in [*(factors or ()), *(one for pair in cross for one in pair)]:
        if name not in known:
            raise UnknownName("factor", name, known - NOT_FACTORS)
    chosen = list(factors) if factors is not None else _plain(about, known - NOT_FACTORS, most)
    rows = [{k: row[k] for k in chosen if k in row} | _crossed(row, cross) for row in about]
    labels = labels_of(rows, least=least)
    if not labels.names:
        raise DataError(
            f"no factor value with {least} images or more among "
            f"{', '.join(sorted(known - NOT_FACTORS)) or 'no factors at all'}"
        )
    return labels


def _plain(about: Sequence[dict[str, Any]], keys: set[str], most: int) -> list[str]:
    """The factors with one value per image, and not too many values."""
    chosen = []
    for key in sorted(keys):
        values = [row[key] for row in about if key in row]
        if not any(isinstance(v, list) for v in values) and len({str(v) for v in values}) <= most:
            chosen.append(key)
    return chosen


def _crossed(row: dict[str, Any], cross: Sequence[tuple[str, str]]) -> dict[str, str]:
    pairs = [(a, b) for a, b in cross if a in row and b in row]
    return {f"{a}{AND}{b}": f"{row[a]}{AND}{row[b]}" for a, b in pairs}


def held_out(keys: Sequence[str], parts: int = 5) -> Bool[Tensor, " n"]:
    """One in `parts` images, by the hash of their keys: the same images every time."""
    return folds(keys, parts) == 0


def mean_of(numbers: Float[Tensor, " v"]) -> float:
    """The mean of what is defined; NaN when nothing is."""
    defined = numbers[~numbers.isnan()]
    return float(defined.double().mean()) if len(defined) else math.nan
