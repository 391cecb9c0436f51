"""Does a latent detect something known? Its best factor value, cross-validated."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vision_sae.measures.latents import ImageCodes

NOT_FACTORS = frozenset({"caption", "name", "emoji", "held_out", "key"})  # labels of single images


@dataclass(frozen=True)
class Detection:
    """One latent as a detector of one value; the rates are cross-validated, see `detections`."""

    latent: int
    factor: str
    value: str
    threshold: float
    precision: float
    recall: float
    f1: float
    auroc: float


@dataclass(frozen=True)
class Labels:
    """Which images have which (factor, value): entry e says image[e] has values[value[e]]."""

    names: list[tuple[str, str]]
    image: Int[Tensor, " e"]
    value: Int[Tensor, " e"]
    images: int

    def counts(self, part: Bool[Tensor, " images"]) -> Int[Tensor, " v"]:
        """How many images of a part have each value."""
        return torch.bincount(self.value[part[self.image]], minlength=len(self.names))


def labels_of(about: Sequence[dict[str, Any]], *, least: int = 5) -> Labels:
    """Every (key, value) that at least `least` images have, but not all; lists give many."""
    rows: dict[tuple[str, str], list[int]] = {}
    for image, known in enumerate(about):
        for key, value in known.items():
            if key not in NOT_FACTORS:
                for one in value if isinstance(value, list) else [value]:
                    rows.setdefault((key, str(one)), []).append(image)
    kept = {name: ids for name, ids in sorted(rows.items()) if least <= len(ids) < len(about)}
    images = [image for ids in kept.values() for image in ids]
    values = [v for v, ids in enumerate(kept.values()) for _ in ids]
    return Labels(list(kept), torch.tensor(images).long(), torch.tensor(values).long(), len(about))


def folds(keys: Sequence[str], n: int = 5) -> Int[Tensor, " images"]:
    """A fixed fold number for each image, by the hash of its key."""
    return torch.tensor([hashlib.sha256(key.encode()).digest()[0] % n for key in keys])


def detections(codes: ImageCodes, labels: Labels, fold: Int[Tensor, " images"]) -> list[Detection]:
    """Each live latent's best value by F1, cross-validated over folds of the images.

    For each fold the best (value, threshold) is chosen on the others and applied to it; precision,
    recall and F1 pool all folds, so no image is scored by a threshold that it helped to choose.
    The value, threshold and AUROC told are those of all images.
    """
    by_image = _values_by_image(labels)
    has = _Members(labels)
    totals = labels.counts(fold >= 0)
    parts = [(fold == number, labels.counts(fold != number)) for number in fold.unique()]
    found = []
    for latent in codes.live:
        images, values = codes.of(latent)
        best = _best_value(images, values, by_image, totals)
        if best is None:
            continue
        v, threshold = best
        counts = torch.zeros(3, dtype=torch.int64)  # hits, fired, positive
        for held_out, others in parts:
            counts += _held_out_counts(images, values, held_out, by_image, others, has)
        scores = torch.zeros(labels.images)
        scores[images] = values
        area = auroc(scores, has(v))
        found.append(Detection(latent, *labels.names[v], threshold, *_rates(counts), area))
    return found


class _Members:
    """Which images have a value, as a mask; entries are sorted by value, so this is a slice."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        counts = torch.bincount(labels.value, minlength=len(labels.names))
        self.ends: list[int] = counts.cumsum(0).tolist()

    def __call__(self, value: int) -> Bool[Tensor, " images"]:
        mask = torch.zeros(self.labels.images, dtype=torch.bool)
        start = self.ends[value - 1] if value else 0
        mask[self.labels.image[start : self.ends[value]]] = True
        return mask


def _held_out_counts(
    images: Int[Tensor, " m"],
    values: Float[Tensor, " m"],
    held_out: Bool[Tensor, " images"],
    by_image: tuple[Tensor, Tensor],
    others: Int[Tensor, " v"],
    has: _Members,
) -> Int[Tensor, " 3"]:
    """(hits, fired, positive) on one fold, with value and threshold chosen on the others.

    `others` counts the images of the other folds that have each value.
    """
    here = held_out[images]
    best = _best_value(images[~here], values[~here], by_image, others)
    if best is None:
        return torch.tensor([0, int(here.sum()), 0])
    positive = has(best[0])
    fired = images[here][values[here] >= best[1]]
    hits = int(positive[fired].sum())
    return torch.tensor([hits, len(fired), int((positive & held_out).sum())])


def _rates(counts: Int[Tensor, " 3"]) -> tuple[float, float, float]:
    """Precision, recall and F1 of (hits, fired, positive); NaN where undefined."""
    hits, fired, positive = counts.tolist()
    return (
        hits / fired if fired else float("nan"),
        hits / positive if positive else float("nan"),
        2 * hits / (fired + positive) if fired + positive else 0.0,
    )


def _values_by_image(labels: Labels) -> tuple[Tensor, Tensor]:
    """(start [images + 1], values): the values of each image, contiguous."""
    order = labels.image.argsort(stable=True)
    start = torch.zeros(labels.images + 1, dtype=torch.int64)
    start[1:] = torch.bincount(labels.image, minlength=labels.images).cumsum(0)
    return start, labels.value[order]


def _best_value(
    images: Int[Tensor, " m"],
    activations: Float[Tensor, " m"],
    by_image: tuple[Tensor, Tensor],
    totals: Int[Tensor, " v"],
) -> tuple[int, float] | None:
    """The (value, threshold) of largest F1, over every value and every threshold.

    Images come strongest first. F1 of value v after r images is 2 hits / (r + total of v), and can
    only be largest right after a hit, so one running count over the hits finds the best of all.
    """
    start, values = by_image
    per_image = start[images + 1] - start[images]
    if not int(per_image.sum()):
        return None
    rank = torch.repeat_interleave(torch.arange(len(images)), per_image)
    offset = torch.arange(len(rank)) - torch.repeat_interleave(
        per_image.cumsum(0) - per_image, per_image
    )
    value = values[start[images][rank] + offset]
    hits = _running_count(value)
    f1 = 2 * hits / (rank + 1 + totals[value])
    at = int(f1.argmax())
    return int(value[at]), float(activations[rank[at]])


def _running_count(value: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """How often each entry's value has come up to and including it."""
    order = value.argsort(stable=True)
    sorted_value = value[order]
    place = torch.arange(len(value))
    first = torch.searchsorted(sorted_value, sorted_value)
    counts = torch.empty_like(value)
    counts[order] = place - first + 1
    return counts


def auroc(scores: Float[Tensor, " m"], positive: Bool[Tensor, " m"]) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney U); NaN with one class only."""
    yes, no = int(positive.sum()), int((~positive).sum())
    if not yes or not no:
        return float("nan")
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    upto = counts.cumsum(0)
    rank = upto.double() - (counts.double() - 1) / 2  # mean rank of each tied group
    return (float(rank[inverse][positive].sum()) - yes * (yes + 1) / 2) / (yes * no)
