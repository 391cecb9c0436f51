"""A bottleneck beside its baselines: the same images, the same split, one table.

Everything is fitted on a task's train part and chosen on its validation part; test is looked at
once, by every method alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.data.decode import decoded
from vision_sae.errors import DataError, UnknownName
from vision_sae.extract import activations_of, read_of
from vision_sae.model.adapter import Adapter, TextImageAdapter
from vision_sae.recipes.bottleneck import measures
from vision_sae.recipes.bottleneck.baselines import Splice, WordConcepts, fit_probe, zero_shot
from vision_sae.recipes.bottleneck.concepts import Pool, Reader, concepts_of_images
from vision_sae.recipes.bottleneck.estimator import Bottleneck
from vision_sae.recipes.bottleneck.head import reaching
from vision_sae.recipes.bottleneck.tasks import PARTS, Part, Task

OURS, READ, EMBEDDED = "bottleneck", "linear probe, where the SAE reads", "linear probe, embedding"
ZERO_SHOT, WORDS, SPLICE = "zero-shot", "concept words (LF-CBM)", "SpLiCE"
METHODS = (OURS, READ, EMBEDDED, ZERO_SHOT, WORDS, SPLICE)
SETTINGS: Mapping[str, Any] = {"choice": "per-decision"}  # at most 25 concepts to 95% of a logit


@dataclass(frozen=True)
class Seen:
    """One part of a task as the methods see it.

    concepts: codes [n s], or Concepts. read [n d]: what the SAE reads, of several tokens the class
    token, or their mean. embedded [n e]: the model's embedding of the image, where it has one.
    """

    concepts: Any
    read: Float[Tensor, "n d"]
    embedded: Float[Tensor, "n e"] | None
    labels: list[str]
    groups: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)  # held-out concept or pair, where it is known


@dataclass(frozen=True)
class Texts:
    """Classes and the unit embeddings of their texts [c e], words and theirs [v e]."""

    names: list[str]
    classes: Float[Tensor, "c e"]
    words: list[str]
    vocabulary: Float[Tensor, "v e"]


@dataclass(frozen=True)
class Row:
    """What one method does on test. `per_decision`: concepts to 95% of the predicted logit."""

    method: str
    accuracy: float
    validation: float | None
    by_kind: dict[str, float]
    by_group: dict[str, float]
    worst_group: float | None
    per_decision: float | None = None
    concepts: int | None = None
    ECE: float | None = None
    chosen: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Parts = Mapping[str, Seen]


def compare(
    parts: Parts,
    texts: Texts | None = None,
    *,
    methods: Sequence[str] = METHODS,
    settings: Mapping[str, Any] = SETTINGS,
    tell: Callable[[str], None] = lambda method: None,
) -> list[Row]:
    """Every method that the model allows: without texts the two linear probes and the bottleneck.

    `settings` are the bottleneck's, and those of the heads of the other two bottlenecks. Raises
    UnknownName for a method.
    """
    for method in methods:
        if method not in METHODS:
            raise UnknownName("method", method, METHODS)
    found = []
    for method in methods:
        if method in (OURS, READ) or (method == EMBEDDED and parts["train"].embedded is not None):
            tell(method)
            found.append(_plain(method, parts, settings))
        elif texts is not None and method != EMBEDDED:
            tell(method)
            found.append(_with_texts(method, parts, texts, settings))
    return found


def _plain(method: str, parts: Parts, settings: Mapping[str, Any]) -> Row:
    if method == OURS:
        return bottleneck_row(method, parts, {n: parts[n].concepts for n in PARTS}, settings)[1]
    rows = {name: _numbers(seen, method) for name, seen in parts.items()}
    probe = fit_probe(
        rows["train"], parts["train"].labels, (rows["validation"], parts["validation"].labels)
    )
    p = probe.probabilities(rows["test"])
    said, best = probe.predict(rows["test"]), max(probe.validation.values())
    calibration = measures.ece(p, _hot(parts["test"].labels, probe.classes), several=False)
    return row_of(method, said, parts["test"], validation=best, ECE=calibration,
                  chosen=f"C {probe.C:g}")  # fmt: skip


def _numbers(seen: Seen, method: str) -> Any:
    rows = seen.read if method == READ else seen.embedded
    assert rows is not None
    return rows.double().numpy()


def _with_texts(method: str, parts: Parts, texts: Texts, settings: Mapping[str, Any]) -> Row:
    images = {name: _embedded(seen) for name, seen in parts.items()}
    if method == ZERO_SHOT:
        return row_of(method, zero_shot(images["test"], texts.classes, texts.names), parts["test"])
    if method == WORDS:
        words = WordConcepts.of(images["train"], texts.words, texts.vocabulary, texts.classes)
        scores = {name: words.scores(x) for name, x in images.items()}
        note = f"{len(words.words)} of {len(texts.words)} words"
    else:
        splice = Splice.of(images["train"], texts.words, texts.vocabulary)
        scores = {name: splice.codes(x) for name, x in images.items()}
        note = f"{scores['test'].nnz / len(parts['test'].labels):.1f} words an image"
    return bottleneck_row(method, parts, scores, settings, note)[1]


def _embedded(seen: Seen) -> Tensor:
    if seen.embedded is None:
        raise DataError("this model has no embedding of images to compare texts with")
    return seen.embedded


def bottleneck_row(
    method: str, parts: Parts, concepts: Mapping[str, Any], settings: Mapping[str, Any],
    note: str = "",
) -> tuple[Bottleneck, Row]:  # fmt: skip
    """Fit on train, choose on validation, measure on test."""
    cbm = Bottleneck(**settings).fit(
        concepts["train"], parts["train"].labels,
        validation=(concepts["validation"], parts["validation"].labels),
    )  # fmt: skip
    return cbm, measured(method, cbm, concepts["test"], parts["test"], note)


def measured(method: str, cbm: Bottleneck, concepts: Any, test: Seen, note: str = "") -> Row:
    """A fitted bottleneck on test."""
    codes = getattr(concepts, "codes", concepts)
    p, said = cbm.predict_proba(concepts), cbm.predict(concepts)
    z = cbm.decision_function(concepts).argmax(1)
    strength = f"strength {cbm.path_[cbm.chosen_].strength:.3g}"
    return row_of(
        method, said, test, validation=cbm.validation_["score"],
        per_decision=float(reaching(cbm.head_.contributions(codes, z)).mean()),
        concepts=len(cbm.head_.used), chosen=", ".join(filter(None, [strength, note])),
        ECE=measures.ece(p, _hot(test.labels, cbm.classes_), several=False),
    )  # fmt: skip


def row_of(method: str, said: Sequence[Any], test: Seen, **more: Any) -> Row:
    right = np.array([a == b for a, b in zip(said, test.labels, strict=True)], dtype=float)
    groups = measures.by_group(right, test.groups) if test.groups else {}
    kinds = measures.by_group(right, test.kinds) if any(test.kinds) else {}
    worst = min(groups.values()) if groups else None
    numbers: dict[str, Any] = {"validation": None} | more
    return Row(method, float(right.mean()), numbers.pop("validation"), kinds, groups, worst,
               **numbers)  # fmt: skip


def _hot(labels: Sequence[str], classes: Sequence[Any]) -> Any:
    return np.array([[label == one for one in classes] for label in labels], dtype=float)


# ---- from images


def see(
    adapter: Adapter,
    part: Part,
    saes: Sequence[Reader],
    *,
    pool: Pool = "max",
    batch_size: int = 64,
    tell: Callable[[int], None] = lambda images: None,
) -> Seen:
    """Run the model over a part: concepts in one pass, embeddings and activations in another.

    Raises DataError for a part with images that cannot be read.
    """
    concepts = concepts_of_images(adapter, part, saes, pool=pool, batch_size=batch_size)
    if concepts.skipped:
        raise DataError(
            f"{len(concepts.skipped)} images of {part.name} cannot be read, so that methods would "
            f"be compared on other images than its own: {concepts.skipped[0]}"
        )
    reading = read_of(adapter, part, [saes[0].site], saes[0].tokens, "float32")
    read, embedded = [], []
    items = decoded(part)
    while batch := list(islice(items, batch_size)):
        prepared = adapter.prepare([item.image for item in batch])
        acts = activations_of(adapter, prepared, reading)[saes[0].site].float().cpu()
        has_class = reading.sites[0].prefix and saes[0].tokens in ("all", "cls")
        read.append(acts[:, 0] if has_class else acts.mean(1))
        if isinstance(adapter, TextImageAdapter):
            embedded.append(adapter.embed_images(prepared).float().cpu())
        tell(len(batch))
    kinds = [str(about.get("held_out", "")) for about in concepts.about]
    return Seen(concepts, torch.cat(read), torch.cat(embedded) if embedded else None, part.labels,
                part.groups, kinds)  # fmt: skip


def texts_of(adapter: Adapter, task: Task, words: Sequence[str]) -> Texts | None:
    """What the model's text tower says of classes and vocabulary; None where it has none."""
    from vision_sae.naming import embed_words

    if not isinstance(adapter, TextImageAdapter):
        return None
    classes = embed_words(adapter, task.prompts)
    return Texts(task.classes, classes, list(words), embed_words(adapter, words))
