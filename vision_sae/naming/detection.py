"""Does a name say what its latent does? The name's text must find the images it fires on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.measures.latents import ImageCodes

LEAST = 5  # images with and without, below which no AUROC is told


@dataclass(frozen=True)
class Tested:
    """A name as a detector of its latent on images that did not choose it.

    `auroc` is that of the cosine between the name's text and each image, for telling the images on
    which the latent fires (`positives`) from the others; None, and `untested` says why, with too
    few of either.
    """

    auroc: float | None
    positives: int
    images: int
    untested: str = ""


def firing(
    codes: ImageCodes, latents: Sequence[int], above: float = 0.0
) -> Float[Tensor, "l images"]:
    """A sparse matrix of ones where a latent fires: above `above` times its largest activation.

    At 0, wherever it fires at all.
    """
    rows, columns = [], []
    for row, latent in enumerate(latents):
        images, values = codes.of(latent)
        chosen = images[values > above * values[:1].sum()]
        rows.append(torch.full_like(chosen, row))
        columns.append(chosen)
    at = torch.stack([torch.cat(rows), torch.cat(columns)])
    shape = (len(latents), codes.images)
    return torch.sparse_coo_tensor(at, torch.ones(at.shape[1]), shape, check_invariants=True)


def mean_ranks(scores: Float[Tensor, "v m"]) -> Float[Tensor, "v m"]:
    """Ranks from 1 within each row; equal scores share their mean rank."""
    ordered = scores.contiguous().sort(1).values
    below = torch.searchsorted(ordered, scores.contiguous())
    upto = torch.searchsorted(ordered, scores.contiguous(), right=True)
    return (below + upto + 1) / 2


def detection_table(
    texts: Float[Tensor, "v e"],
    embeddings: Float[Tensor, "images e"],
    fires: Float[Tensor, "l images"],
) -> Float[Tensor, "l v"]:
    """AUROC of every text as a detector of every latent, by sums of ranks (Mann-Whitney U).

    NaN for latents that fire on no image or on all. `fires` is sparse, of ones; embeddings are
    unit rows without NaN.
    """
    yes = torch.sparse.sum(fires, 1).to_dense().double()
    no = embeddings.shape[0] - yes
    parts = []
    for some in texts.split(512):
        ranks = mean_ranks(some @ embeddings.T).double()
        sums = torch.sparse.mm(fires.double(), ranks.T)
        parts.append((sums - (yes * (yes + 1) / 2)[:, None]) / (yes * no)[:, None])
    return torch.cat(parts, 1)


def best_detecting(
    candidates: Int[Tensor, "l k"],
    texts: Float[Tensor, "v e"],
    embeddings: Float[Tensor, "images e"],
    fires: Float[Tensor, "l images"],
) -> Int[Tensor, " l"]:
    """Of each latent's candidate texts the one of largest AUROC, the first of equals."""
    asked = candidates.unique()
    table = detection_table(texts[asked], embeddings, fires)
    areas = table.gather(1, torch.searchsorted(asked, candidates)).nan_to_num(0.5)
    return candidates.gather(1, areas.argmax(1)[:, None])[:, 0]


def detect(
    texts: Float[Tensor, "l e"],
    embeddings: Float[Tensor, "images e"],
    fires: Float[Tensor, "l images"],
    *,
    least: int = LEAST,
) -> list[Tested]:
    """Each latent's own text as its detector, row by row."""
    fires = fires.coalesce()
    yes = torch.sparse.sum(fires, 1).to_dense().long().tolist()
    images = embeddings.shape[0]
    row, column = fires.indices()
    found = []
    for latent, positives in enumerate(yes):
        if min(positives, images - positives) < least:
            found.append(Tested(None, positives, images, _too_few(positives, images, least)))
            continue
        ranks = mean_ranks(texts[latent : latent + 1] @ embeddings.T)[0].double()
        above = float(ranks[column[row == latent]].sum()) - positives * (positives + 1) / 2
        found.append(Tested(above / (positives * (images - positives)), positives, images))
    return found


def _too_few(positives: int, images: int, least: int) -> str:
    few, what = (positives, "fires") if positives < least else (images - positives, "is silent")
    return f"it {what} on {few} of {images} held-out images, {least} are needed"


def centred(
    embeddings: Float[Tensor, "n e"], middle: Float[Tensor, " e"] | None
) -> Float[Tensor, "n e"]:
    """Unit rows with `middle` taken off, if there is one."""
    return F.normalize(embeddings if middle is None else embeddings - middle, dim=1)
