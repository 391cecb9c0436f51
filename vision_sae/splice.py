"""What the model still knows when it sees only the SAE's reconstruction: zero-shot accuracy."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.adapter import Adapter, Site, TextImageAdapter
from vision_sae.edit import Change, on_tokens, reconstruct
from vision_sae.errors import DataError
from vision_sae.hooks import edit
from vision_sae.provenance import Tokens
from vision_sae.sae import SAE


@dataclass(frozen=True)
class Spliced:
    """Zero-shot top-1 accuracy of the model as it is, and with its site replaced.

    `recovered` is (spliced - mean) / (original - mean): 1 when the reconstruction loses nothing
    that the mean-ablated model lacks; NaN when ablation loses nothing.
    """

    original: float
    spliced: float
    zero: float  # the site's tokens set to zero
    mean: float  # the site's tokens set to their mean
    images: int

    @property
    def recovered(self) -> float:
        lost = self.original - self.mean
        return (self.spliced - self.mean) / lost if lost else float("nan")


def splice_accuracy(
    adapter: Adapter,
    sae: SAE,
    site: Site,
    tokens: Tokens,
    mean: Float[Tensor, " d"],
    texts: Float[Tensor, "classes e"],
    batches: Iterable[tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]],
) -> Spliced:
    """Zero-shot accuracy with `texts` as the classes, over (prepared images, class numbers).

    Raises DataError for a model without text embeddings, or pooled tokens.
    """
    if not isinstance(adapter, TextImageAdapter):
        raise DataError(f"{adapter.name} has no text embeddings, so there is no zero-shot accuracy")
    changes: dict[str, Change | None] = {
        "original": None,
        "spliced": reconstruct(sae.eval()),
        "zero": lambda x: torch.zeros_like(x),
        "mean": lambda x: mean.expand_as(x),
    }
    right, images = dict.fromkeys(changes, 0), 0
    for batch, truth in batches:
        images += len(batch)
        for mode, change in changes.items():
            found = (_embed(adapter, batch, site, tokens, change) @ texts.T).argmax(1)
            right[mode] += int((found.cpu() == truth).sum())
    return Spliced(**{mode: count / images for mode, count in right.items()}, images=images)


def _embed(
    adapter: TextImageAdapter, batch: Tensor, site: Site, tokens: Tokens, change: Change | None
) -> Tensor:
    changed = (
        edit(adapter.model, site.name, on_tokens(change, site, tokens)) if change else nullcontext()
    )
    with changed:
        return adapter.embed_images(batch)
