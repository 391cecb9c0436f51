"""Do a latent's images look alike to another model? And do two latents see the same images?

Shape key: s latents, e width of the embeddings.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.measures.case import Case
from vision_sae.measures.latents import ImageCodes
from vision_sae.measures.score import Score, Scores, scored, undefined

BLOCK = 2**20  # entries of codes whose embeddings are held at a time
TOP = 16


def monosemanticity(case: Case) -> Scores:
    """MonoSemanticity score (Pach et al. 2025, arXiv 2504.02821, eq. 3) by another model's view.

    MS of a latent = sum_{n<m} a_n a_m cos(E_n, E_m) / sum_{n<m} a_n a_m over all pairs of images,
    a being the latent's activations scaled so that its least over the images is 0 and its largest
    1. The mean over latents, the best latent (the paper's table), and as the floor MS of a latent
    that fires alike on all images, the mean cosine of two images. n: latents with a score; a latent
    that fires on fewer than two images, or on all alike, has none.
    """
    embeddings = case.test.embeddings
    assert embeddings is not None
    scores = ms_scores(case.on_test.image_codes, embeddings)
    found = scores[~scores.isnan()]
    why = "no latent fires on two images of the sample"
    n = len(found)
    return {
        "monosemanticity": scored(float(found.mean()), why, n=n),
        "monosemanticity_best": Score(float(found.max()), n=n) if n else undefined(why, n=0),
        "monosemanticity_floor": scored(
            mean_cosine(embeddings), "two images are needed", n=len(embeddings)
        ),
    }


def mean_cosine(embeddings: Float[Tensor, "images e"]) -> float:
    """Over all pairs of unit rows: (|sum e|^2 - N) / (N (N - 1))."""
    n, total = len(embeddings), embeddings.double().sum(0)
    own = embeddings.double().square().sum()
    return float((total @ total - own) / (n * (n - 1))) if n > 1 else float("nan")


def ms_scores(codes: ImageCodes, embeddings: Float[Tensor, "images e"]) -> Float[Tensor, " s"]:
    """The score of each latent, NaN where it has none. No images x images matrix is made:

    sum_{n<m} a_n a_m cos(E_n, E_m) = (|sum_n a_n E_n|^2 - sum_n a_n^2) / 2 for unit E, and the
    weights' sum is ((sum a)^2 - sum a^2) / 2. So the work grows with images times their l0.
    """
    scaled = _scaled(codes)
    latent = torch.repeat_interleave(torch.arange(len(codes.start) - 1), codes.start.diff())
    s, width = len(codes.start) - 1, embeddings.shape[1]
    total = torch.zeros(s, dtype=torch.float64).index_add(0, latent, scaled)
    squares = torch.zeros(s, dtype=torch.float64).index_add(0, latent, scaled.square())
    own = embeddings.double().square().sum(1)[codes.image]  # 1, but for rounding
    own_squares = torch.zeros(s, dtype=torch.float64).index_add(0, latent, scaled.square() * own)
    pulled = torch.zeros(s, dtype=torch.float64)
    for some in _blocks(codes.start, max(1, BLOCK // max(1, width))):
        part = slice(int(codes.start[some.start]), int(codes.start[some.stop]))
        weighted = scaled[part, None] * embeddings[codes.image[part]].double()
        sums = torch.zeros(some.stop - some.start, width, dtype=torch.float64)
        sums.index_add_(0, latent[part] - some.start, weighted)
        pulled[some] = sums.square().sum(1)
    weights = total.square() - squares
    some_weight = weights > 1e-9 * squares.clamp(min=1e-30)
    return torch.where(some_weight, (pulled - own_squares) / weights, torch.nan)


def _scaled(codes: ImageCodes) -> Float[Tensor, " e"]:
    """Activations of each latent from its least (0 unless it fires on all images) to its largest.

    Entries come strongest first, so these stand at the ends of a latent's own.
    """
    counts = codes.start.diff()
    fires = counts > 0
    values = codes.value.double()
    high, low = torch.ones(len(counts)).double(), torch.zeros(len(counts)).double()
    high[fires] = values[codes.start[:-1][fires]]
    everywhere = counts == codes.images
    low[everywhere & fires] = values[codes.start[1:][everywhere & fires] - 1]
    span = (high - low).repeat_interleave(counts)
    return torch.where(span > 0, (values - low.repeat_interleave(counts)) / span, 0.0)


def _blocks(start: Int[Tensor, " s_plus_1"], entries: int) -> list[slice]:
    """Latents in runs of about so many entries, at least one latent each."""
    found, first, s = [], 0, len(start) - 1
    while first < s:
        last = int(torch.searchsorted(start, start[first] + entries, right=True)) - 1
        last = min(s, max(last, first + 1))
        found.append(slice(first, last))
        first = last
    return found


def ms_of_top(
    codes: ImageCodes,
    embeddings: Float[Tensor, "images e"],
    *,
    top: int = TOP,
    latents: int = 1000,
    seed: int = 42,
) -> Float[Tensor, " m"]:
    """MS over each latent's `top` strongest images only, of at most so many latents drawn at random

    (ViSAEBench 0.1.0, M5, with the same generator). Latents whose other images all have weight 0
    are left out, as there.
    """
    live = np.array(codes.live)
    if len(live) > latents:
        live = np.sort(np.random.RandomState(seed).choice(live, size=latents, replace=False))
    scaled, found = _scaled(codes), []
    for latent in live.tolist():
        first = int(codes.start[latent])
        part = slice(first, min(first + top, int(codes.start[latent + 1])))
        a, E = scaled[part], embeddings[codes.image[part]].double()
        weights = a[:, None] * a
        pairs = torch.ones_like(weights).triu(1).bool()
        if float(weights[pairs].sum()) > 0:
            found.append(float((weights * (E @ E.T))[pairs].sum() / weights[pairs].sum()))
    return torch.tensor(found, dtype=torch.float64)


class Sharing(NamedTuple):
    """Jaccard indices between latents' sets of strongest images."""

    largest: Float[Tensor, " m"]  # of each latent with any other
    mean: float  # over all pairs
    latents: int


def uniqueness(case: Case) -> Scores:
    """How far latents see different images, by the Jaccard index of their 16 strongest images.

    J(i, j) = |T_i & T_j| / |T_i | T_j| (Pach et al. 2025). uniqueness = 1 - mean over latents of
    their largest J with another latent; jaccard = mean J over all pairs. A latent that fires on
    fewer than 16 images has the smaller set; one that fires on fewer than two is left out.
    n: latents.
    """
    found = sharing(case.on_test.image_codes)
    if found is None:
        why = "fewer than two latents fire on two images of the sample"
        return {"uniqueness": undefined(why), "jaccard": undefined(why)}
    return {
        "uniqueness": Score(1 - float(found.largest.mean()), n=found.latents),
        "jaccard": Score(found.mean, n=found.latents),
    }


def sharing(codes: ImageCodes, *, top: int = TOP, block: int = 256) -> Sharing | None:
    """Blocks of latents against all; None when there are not two that fire on two images."""
    counts = codes.start.diff()
    kept = (counts >= 2).nonzero()[:, 0]
    if len(kept) < 2:
        return None
    sets = _sets(codes, kept, top)
    size = counts[kept].clamp(max=top).double()
    largest, total = [], 0.0
    for some in torch.arange(len(kept)).split(block):
        mine = sets.index_select(0, some).to_dense()
        shared = torch.sparse.mm(sets, mine.T).T.double()
        jaccard = shared / (size[some, None] + size - shared)
        jaccard[torch.arange(len(some)), some] = 0.0
        largest.append(jaccard.amax(1))
        total += float(jaccard.sum())
    pairs = len(kept) * (len(kept) - 1)
    return Sharing(torch.cat(largest), total / pairs, len(kept))


def _sets(codes: ImageCodes, latents: Int[Tensor, " m"], top: int) -> Tensor:
    """[m images], sparse: 1 where an image is among a latent's strongest."""
    first, last = codes.start[:-1][latents], codes.start[1:][latents]
    size = (last - first).clamp(max=top)
    row = torch.repeat_interleave(torch.arange(len(latents)), size)
    place = torch.arange(len(row)) - (size.cumsum(0) - size)[row]
    at = torch.stack([row, codes.image[first[row] + place]])
    shape = (len(latents), codes.images)
    return torch.sparse_coo_tensor(
        at, torch.ones(len(row)), shape, check_invariants=False
    ).coalesce()
