"""What a model still knows, by its zero-shot classes, when it sees the SAE's reconstruction."""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.model.adapter import Adapter, TextImageAdapter
from vision_sae.model.edit import Change, on_tokens, reconstruct
from vision_sae.model.hooks import edit
from vision_sae.model.sites import Site
from vision_sae.provenance import Tokens
from vision_sae.sae import SAE


@dataclass(frozen=True)
class Outcome:
    """Means over images: top-1 accuracy, cross entropy of the true class in nats, and the KL
    divergence in nats from the untouched model's class probabilities to these."""

    accuracy: float
    loss: float
    kl: float


@dataclass(frozen=True)
class Spliced:
    """The model as it is, and with its site replaced.

    `skipped` names images that were left out and says why.
    """

    original: Outcome
    spliced: Outcome
    zero: Outcome  # the site's tokens set to zero
    mean: Outcome  # the site's tokens set to their mean
    images: int
    skipped: tuple[str, ...] = ()

    def recovered(self, what: str = "accuracy", floor: str = "mean") -> float:
        """(spliced - floor) / (original - floor) of one number, the floor being `mean` or `zero`.

        1 when the reconstruction loses nothing that the ablated model lacks (SAEBench's CE and KL
        scores with what="loss" and "kl", floor="zero"); NaN when ablation changes nothing.
        """
        worst, best, found = (
            getattr(getattr(self, who), what) for who in (floor, "original", "spliced")
        )
        return float((found - worst) / (best - worst)) if best != worst else math.nan


def splice(
    adapter: Adapter,
    sae: SAE | Change,
    site: Site,
    tokens: Tokens,
    mean: Float[Tensor, " d"],
    texts: Float[Tensor, "classes e"],
    batches: Iterable[tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]],
) -> Spliced:
    """Zero-shot outcomes with `texts` as the classes, over (prepared images, class numbers).

    In place of an SAE, any other change of the site's rows.

    Raises DataError for a model without text embeddings, pooled tokens, or no images.
    """
    if not isinstance(adapter, TextImageAdapter):
        raise DataError(f"{adapter.name} has no text embeddings, so there is no zero-shot accuracy")
    changes: dict[str, Change | None] = {
        "original": None,
        "spliced": reconstruct(sae.eval()) if isinstance(sae, SAE) else sae,
        "zero": lambda x: torch.zeros_like(x),
        "mean": lambda x: mean.to(x).expand_as(x),
    }
    sums, images = {name: torch.zeros(3, dtype=torch.float64) for name in changes}, 0
    for batch, truth in batches:
        images += len(batch)
        found = {n: _log_odds(adapter, batch, site, tokens, c, texts) for n, c in changes.items()}
        for name, odds in found.items():
            sums[name] += _sums(odds, found["original"], truth)
    if not images:
        raise DataError("no readable, labelled image to splice on")
    original, spliced, zero, mean_ = (Outcome(*(t / images).tolist()) for t in sums.values())
    return Spliced(original, spliced, zero, mean_, images)


def _sums(
    odds: Float[Tensor, "b c"], original: Float[Tensor, "b c"], truth: Int[Tensor, " b"]
) -> Float[Tensor, " 3"]:
    """Right answers, cross entropy and KL, summed over images."""
    right = (odds.argmax(1) == truth).sum()
    kl = F.kl_div(odds, original, log_target=True, reduction="sum")
    return torch.stack([right.double(), F.nll_loss(odds, truth, reduction="sum"), kl])


def _log_odds(
    adapter: TextImageAdapter,
    batch: Tensor,
    site: Site,
    tokens: Tokens,
    change: Change | None,
    texts: Float[Tensor, "classes e"],
) -> Float[Tensor, "b classes"]:
    """Log probabilities of the classes, in float64."""
    changed = (
        edit(adapter.model, site.name, on_tokens(change, site, tokens)) if change else nullcontext()
    )
    with changed:
        found = adapter.embed_images(batch).cpu()
    return (adapter.logit_scale * (found @ texts.T).double()).log_softmax(1)
