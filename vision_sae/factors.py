"""Does a latent detect something known? Its best factor value, scored on images held back."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vision_sae.latents import ImageCodes

NOT_FACTORS = frozenset({"caption", "name", "emoji", "held_out", "key"})  # labels of single images


@dataclass(frozen=True)
class Detection:
    """One latent as a detector of one value: `threshold` was chosen on other images than these."""

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


def halves(keys: Sequence[str]) -> Bool[Tensor, " images"]:
    """A fixed split by the hash of each key: True chooses thresholds, False scores them."""
    return torch.tensor([hashlib.sha256(k.encode()).digest()[0] % 2 == 0 for k in keys])


def detections(
    codes: ImageCodes, labels: Labels, choose: Bool[Tensor, " images"]
) -> list[Detection]:
    """Each live latent's best value and threshold by F1 on one half, scored on the other."""
    by_image = _values_by_image(labels)
    totals = labels.counts(choose), labels.counts(~choose)
    found = []
    for latent in codes.counts().nonzero()[:, 0].tolist():
        images, values = codes.of(latent)
        mine = choose[images]
        best = _best_value(images[mine], values[mine], by_image, totals[0])
        if best is None:
            continue
        v, threshold = best
        positive = torch.zeros(labels.images, dtype=torch.bool)
        positive[labels.image[labels.value == v]] = True
        scores = torch.zeros(labels.images)
        scores[images] = values
        numbers = _score(scores[~choose], positive[~choose], threshold)
        found.append(Detection(latent, *labels.names[v], threshold, *numbers))
    return found


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


def _score(
    scores: Float[Tensor, " m"], positive: Bool[Tensor, " m"], threshold: float
) -> tuple[float, float, float, float]:
    """Precision, recall, F1 at the threshold, and AUROC; NaN where they are undefined."""
    fires = scores >= threshold
    hits = float((fires & positive).sum())
    precision = hits / float(fires.sum()) if bool(fires.any()) else float("nan")
    recall = hits / float(positive.sum()) if bool(positive.any()) else float("nan")
    both = float(fires.sum() + positive.sum())
    return precision, recall, 2 * hits / both if both else 0.0, auroc(scores, positive)


def auroc(scores: Float[Tensor, " m"], positive: Bool[Tensor, " m"]) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney U); NaN with one class only."""
    yes, no = int(positive.sum()), int((~positive).sum())
    if not yes or not no:
        return float("nan")
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    upto = counts.cumsum(0)
    rank = upto.double() - (counts.double() - 1) / 2  # mean rank of each tied group
    return (float(rank[inverse][positive].sum()) - yes * (yes + 1) / 2) / (yes * no)
