"""Splice an SAE's reconstruction into the model it came from, and measure zero-shot accuracy."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vision_sae.data import ImageSource, open_data
from vision_sae.data.decode import Decoded, decoded, first_image
from vision_sae.errors import DataError, UnknownName
from vision_sae.matching import check_match, check_model
from vision_sae.measures.splice import Spliced, splice
from vision_sae.model.adapter import Adapter, TextImageAdapter
from vision_sae.model.edit import Change
from vision_sae.model.probing import probe_site
from vision_sae.sae import SAE
from vision_sae.store import Store

log = logging.getLogger(__name__)


def splice_sae(
    adapter: Adapter,
    sae: SAE,
    store: Store,
    *,
    source: ImageSource | None = None,
    label: str | None = None,
    images: int = 1000,
    tell: Callable[[int], None] = lambda images: None,
) -> Spliced:
    """Zero-shot outcomes with the reconstruction spliced in, on the first images of a source.

    Images that cannot be read or have no label are left out, logged and listed in `skipped`.

    The classes are all values of `label` (by default `name`, else `label`) among the store's
    images and these. Raises MismatchError, DataError, UnknownName for a label that is not there.
    """
    check_match(sae, store)
    return Splicer(adapter, store, source=source, label=label, images=images)(sae, tell)


class Splicer:
    """Splices one SAE after another into a model, on the same images; see `splice_sae`.

    `digest` says in a few letters which images, classes and model.
    """

    def __init__(
        self,
        adapter: Adapter,
        store: Store,
        *,
        source: ImageSource | None = None,
        label: str | None = None,
        images: int = 1000,
    ) -> None:
        check_model(adapter, store)
        if not isinstance(adapter, TextImageAdapter):
            raise DataError(
                f"{adapter.name} has no text embeddings, so there is no zero-shot accuracy"
            )
        self.adapter, self.images = adapter, images
        self.source = source or open_data(store.index.provenance.data, commands=False)
        known = [*store.about, *(item.about for item in islice(self.source.items(), images))]
        self.label = _label_key(known, label)
        self.classes = sorted({str(about[self.label]) for about in known if self.label in about})
        self.texts = adapter.embed_texts(self.classes).cpu()
        where = store.index.provenance
        self.site = probe_site(adapter, where.site, adapter.prepare([first_image(self.source)]))
        self.tokens, self.mean = where.tokens, store.sample(2**14).mean(0)
        parts = [where.fingerprint, where.site, where.tokens, self.source.name, self.label]
        text = "\0".join([*parts, str(images), *self.classes])
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def __call__(
        self, sae: SAE | Change, tell: Callable[[int], None] = lambda images: None
    ) -> Spliced:
        """An SAE, or any other change of the site's rows."""
        skipped: list[str] = []
        batches = _labelled(
            self.adapter, self.source, self.label, self.classes, self.images, skipped, tell
        )
        found = splice(self.adapter, sae, self.site, self.tokens, self.mean, self.texts, batches)
        for line in skipped:
            log.warning("left out of splicing: %s", line)
        return replace(found, skipped=tuple(skipped))


def _label_key(about: Sequence[dict[str, Any]], label: str | None) -> str:
    keys = {key for known in about for key in known}
    for key in [label] if label else ["name", "label"]:
        if key in keys:
            return key
    raise UnknownName("label", label or "label", keys)


def _labelled(
    adapter: Adapter,
    source: ImageSource,
    label: str,
    classes: list[str],
    images: int,
    skipped: list[str],
    tell: Callable[[int], None],
) -> Iterator[tuple[Tensor, Int[Tensor, " b"]]]:
    """Prepared batches of readable, labelled images with their class numbers; notes the others."""
    number = {name: i for i, name in enumerate(classes)}

    def usable(item: Decoded) -> bool:
        why = item.error if item.image is None else f"it has no {label!r}"
        if item.image is None or label not in item.about:
            skipped.append(f"{item.key}: {why}")
            return False
        return True

    rows = (item for item in islice(decoded(source), images) if usable(item))
    while group := list(islice(rows, 64)):
        truth = torch.tensor([number[str(i.about[label])] for i in group])
        yield adapter.prepare([i.image for i in group]), truth
        tell(len(group))
