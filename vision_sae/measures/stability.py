"""Are the same latents found again? Cosines between the latents of two SAEs, and within one.

A latent's direction is a row of W_dec or of W_enc. A row of norm 0 has cosine 0 with everything.
Shape key: m and n latents in two SAEs, d width, p pairs.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from vision_sae.errors import DataError, MismatchError, require
from vision_sae.sae import SAE

ENTRIES = 2**24  # cosines held at a time: 64 MB


def cosines(a: Float[Tensor, "m d"], b: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    """cos(a_i, b_j), in float32 or better."""
    return _units(a) @ _units(b).T


@torch.no_grad()
def largest_cosines(
    a: Float[Tensor, "m d"], b: Float[Tensor, "n d"], *, entries: int = ENTRIES
) -> Float[Tensor, " m"]:
    """max_j cos(a_i, b_j), a block of rows at a time: no m x n matrix is made."""
    return torch.cat([block.amax(1) for block in _blocks(a, b, entries)])


@torch.no_grad()
def largest_other_cosines(
    a: Float[Tensor, "m d"], *, entries: int = ENTRIES
) -> Float[Tensor, " m"]:
    """max over j != i of cos(a_i, a_j); needs two rows. Raises DataError."""
    if len(a) < 2:
        raise DataError(f"other latents are needed to compare with; got {len(a)} in all")
    largest, first = [], 0
    for block in _blocks(a, a, entries):
        own = torch.arange(len(block), device=block.device)
        block[own, first + own] = -torch.inf
        largest.append(block.amax(1))
        first += len(block)
    return torch.cat(largest)


def mmcs(a: Float[Tensor, "m d"], b: Float[Tensor, "n d"]) -> float:
    """Mean max cosine similarity: mean_i max_j cos(a_i, b_j). Not symmetric.

    Sharkey et al. 2022, "Taking features out of superposition with sparse autoencoders".
    """
    return float(largest_cosines(a, b).mean())


def coherence(sae: SAE) -> float:
    """Mean over atoms of the largest cosine with another atom; NaN for a single one."""
    if sae.config.s < 2:
        return math.nan
    return float(largest_other_cosines(sae.W_dec).mean())


@torch.no_grad()
def alignment(sae: SAE) -> float:
    """Mean cos(W_enc[i], W_dec[i]); NaN for a transcoder between two widths."""
    if sae.W_enc.shape != sae.W_dec.shape:
        return math.nan
    return float(torch.cosine_similarity(sae.W_enc.float(), sae.W_dec.float()).mean())


@dataclass(frozen=True)
class Match:
    """A one-to-one matching: row `a[i]` of the one goes with row `b[i]` of the other."""

    a: Int[Tensor, " p"]
    b: Int[Tensor, " p"]
    cosine: Float[Tensor, " p"]

    @property
    def mean(self) -> float:
        return float(self.cosine.double().mean())

    def above(self, cosine: float) -> float:
        """The share of pairs whose cosine is larger."""
        return float((self.cosine > cosine).double().mean())


@torch.no_grad()
def match(W_a: Float[Tensor, "m d"], W_b: Float[Tensor, "n d"], *, absolute: bool = False) -> Match:
    """The matching of min(m, n) rows with the largest sum of cosines (Hungarian algorithm).

    `absolute` takes |cos|: a direction and its opposite count as one. All m x n cosines are held,
    and the time grows with the cube of the smaller number; `mmcs` is for larger SAEs. Raises
    DataError on NaN or infinity, MissingExtra without scipy.
    """
    cos = cosines(W_a, W_b)
    cos = cos.abs() if absolute else cos
    if not bool(cos.isfinite().all()):
        raise DataError("weights with NaN or infinity cannot be matched")
    solve = require("scipy.optimize", "report").linear_sum_assignment
    rows, columns = (torch.from_numpy(i).to(cos.device) for i in solve(cos.cpu().numpy(), True))
    return Match(rows, columns, cos[rows, columns])


@dataclass(frozen=True)
class Similarity:
    """How alike two sets of directions are.

    matched: mean cosine of Hungarian pairs. above_07, above_09: shares of the pairs above 0.7 and
    0.9. mmcs: mean of the mean max cosines in the two directions.
    """

    matched: float
    above_07: float
    above_09: float
    mmcs: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def similarity(W_a: Float[Tensor, "m d"], W_b: Float[Tensor, "n d"]) -> Similarity:
    """Two weight matrices, one row per latent; their numbers of latents may differ."""
    pairs = match(W_a, W_b)
    both_ways = (mmcs(W_a, W_b) + mmcs(W_b, W_a)) / 2
    return Similarity(pairs.mean, pairs.above(0.7), pairs.above(0.9), both_ways)


@dataclass(frozen=True)
class Stability:
    """What two SAEs share, by their atoms and by their encoders' rows."""

    decoder: Similarity
    encoder: Similarity

    def as_dict(self) -> dict[str, dict[str, float]]:
        return asdict(self)


def stability(a: SAE, b: SAE) -> Stability:
    """Two SAEs of one site, say of two seeds (Paulo & Belrose 2025; Song et al. 2025).

    Raises MismatchError when they read vectors of other widths.
    """
    if a.config.d != b.config.d:
        raise MismatchError(f"one SAE reads width {a.config.d}, the other {b.config.d}")
    return Stability(similarity(a.W_dec, b.W_dec), similarity(a.W_enc, b.W_enc))


def _units(a: Tensor) -> Tensor:
    return normalize(a.float() if a.dtype.itemsize < 4 else a, dim=1)


def _blocks(a: Tensor, b: Tensor, entries: int) -> Iterator[Tensor]:
    """cos(a, b), some rows of a at a time."""
    other = _units(b).T
    return (rows @ other for rows in _units(a).split(max(1, entries // len(b))))
