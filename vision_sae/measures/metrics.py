"""Numbers over a whole set of activations; sums are kept, and divided once at the end.

Shape key: n rows, d width of what is reconstructed, s latents.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.measures.stability import alignment, coherence
from vision_sae.model.hooks import inference
from vision_sae.sae import SAE
from vision_sae.sparse.codes import Codes

DENSE = 0.1  # a latent that fires on more than this share of rows is called dense
COMMON = 0.01


@dataclass(frozen=True)
class Metrics:
    """What an SAE does to a set of rows y (a transcoder's targets; else its inputs).

    fvu: sum|y - y_hat|^2 / sum|y - mean|^2 over all rows, so a constant error counts. cosine: mean
    cos(y, y_hat). l0: mean active latents per row; l0_p05, l0_p50, l0_p95: quantiles over the rows.
    l1: mean sum of |code|. dead, common, dense: shares of latents that never fire, or fire on more
    than 1 % or 10 % of the rows. norm_ratio: mean|y_hat| / mean|y|. bias: gamma =
    E|y_hat|^2 / E[y . y_hat], the factor by which y_hat is too long (Rajamanoharan et al. 2024,
    arXiv 2404.16014; 1 is unbiased, L1 shrinkage gives less). coherence: mean over atoms of the
    largest cosine with another atom. alignment: mean cosine of a latent's encoder row and its atom.
    NaN stands for what is not defined: fvu of constant data, alignment between two widths.
    """

    fvu: float
    cosine: float
    l0: float
    l0_p05: float
    l0_p50: float
    l0_p95: float
    l1: float
    dead: float
    common: float
    dense: float
    norm_ratio: float
    bias: float
    rows: int
    coherence: float = math.nan
    alignment: float = math.nan

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Running:
    """Accumulates what Metrics needs, in float64, in any batch sizes and any order.

    The sums stay on `device`: when rows are there too, nothing waits for the device before the end.
    """

    def __init__(self, d: int, s: int, *, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self.device = torch.device("cpu") if device.type == "mps" else device  # has no float64
        self.rows = 0
        self.sums = self._zeros(len(_Sums._fields))
        self.mean = self._zeros(d)
        self.fired = self._zeros(s).long()
        self.l0s = self._zeros(s + 1).long()  # rows by their number of active latents

    def _zeros(self, size: int) -> Float[Tensor, " size"]:
        return torch.zeros(size, dtype=torch.float64, device=self.device)

    def add(self, x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"], codes: Codes) -> None:
        if not len(x):
            return
        x, x_hat = (t.to(self.device).double() for t in (x, x_hat))
        self.sums += torch.stack(_Sums(
            spread=self._add_spread(x),
            error=(x - x_hat).square().sum(),
            cosine=torch.cosine_similarity(x, x_hat).sum(),
            norm=x.norm(dim=1).sum(),
            norm_hat=x_hat.norm(dim=1).sum(),
            square_hat=x_hat.square().sum(),
            product=(x * x_hat).sum(),
            l1=codes.values.abs().sum(dtype=torch.float64).to(self.device),
        ))  # fmt: skip
        self.fired += _counts(codes.indices[codes.active], self.fired)
        self.l0s += _counts(codes.l0, self.l0s)

    def _add_spread(self, x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """What these rows add to sum |x - mean|^2 (Chan et al. 1979); moves the mean."""
        n, batch_mean, total = len(x), x.mean(0), self.rows + len(x)
        between = (batch_mean - self.mean).square().sum() * (self.rows * n / total)
        self.mean += (batch_mean - self.mean) * (n / total)
        self.rows = total
        return (x - batch_mean).square().sum() + between

    def frequencies(self) -> Float[Tensor, " s"]:
        """The share of rows on which each latent fires."""
        return self.fired.double() / max(1, self.rows)

    def result(self, sae: SAE | None = None) -> Metrics:
        """With an SAE, also the coherence and alignment of its weights. Raises DataError."""
        if not self.rows:
            raise DataError("metrics need at least one row of activations; there was none")
        n, sums = self.rows, _Sums(*self.sums.tolist())
        ranks = torch.arange(len(self.l0s), dtype=torch.float64, device=self.device)
        low, middle, high = quantiles(self.l0s, (0.05, 0.5, 0.95))
        share = self.frequencies()
        return Metrics(
            fvu=_ratio(sums.error, sums.spread),
            cosine=sums.cosine / n,
            l0=float(self.l0s.double() @ ranks) / n,
            l0_p05=low,
            l0_p50=middle,
            l0_p95=high,
            l1=sums.l1 / n,
            dead=float((self.fired == 0).double().mean()),
            common=float((share > COMMON).double().mean()),
            dense=float((share > DENSE).double().mean()),
            norm_ratio=_ratio(sums.norm_hat, sums.norm),
            bias=_ratio(sums.square_hat, sums.product),
            rows=n,
            coherence=coherence(sae) if sae else math.nan,
            alignment=alignment(sae) if sae else math.nan,
        )


Number = TypeVar("Number")


class _Sums(NamedTuple, Generic[Number]):
    """Over all rows so far: tensors while they are added, floats at the end."""

    spread: Number
    error: Number
    cosine: Number
    norm: Number
    norm_hat: Number
    square_hat: Number
    product: Number
    l1: Number


def _counts(numbers: Int[Tensor, "..."], like: Int[Tensor, " size"]) -> Int[Tensor, " size"]:
    return torch.bincount(numbers.flatten().to(like.device), minlength=len(like))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def quantiles(counts: Int[Tensor, " values"], shares: Iterable[float]) -> list[float]:
    """For each share q, the least value v such that q of what is counted lies at or below v.

    `counts[v]` is how often v came.
    """
    below = counts.cumsum(0)
    wanted = torch.tensor(list(shares), dtype=torch.float64, device=counts.device) * below[-1]
    found: list[float] = torch.searchsorted(below.double(), wanted).double().tolist()
    return found


class Histogram(NamedTuple):
    """`counts[i]` latents have edges[i] <= log10(frequency) < edges[i + 1]; `never` fire never."""

    edges: list[float]
    counts: list[int]
    never: int


def log10_histogram(
    frequencies: Float[Tensor, " s"], *, low: int = -6, per_decade: int = 4
) -> Histogram:
    """Latents by log10 of the share of rows they fire on; the end bins take what lies beyond."""
    bins = -low * per_decade
    logs = frequencies[frequencies > 0].double().log10()
    places = ((logs - low) * per_decade).floor().long().clamp(0, bins - 1)
    counts: list[int] = torch.bincount(places, minlength=bins).tolist()
    edges = [low + i / per_decade for i in range(bins + 1)]
    return Histogram(edges, counts, len(frequencies) - len(logs))


def evaluate(
    sae: SAE,
    batches: Iterable[
        Float[Tensor, "... d"] | tuple[Float[Tensor, "... d"], Float[Tensor, "... e"]]
    ],
    *,
    weights: bool = True,
) -> Metrics:
    """All metrics of an SAE over batches of rows (or of images by tokens).

    A transcoder's batches are pairs (inputs, targets). Without `weights`, what depends on them
    alone (coherence and alignment, s^2 d products) is left out as NaN. Raises DataError without a
    row, and for a transcoder without targets.
    """
    W = sae.W_dec
    running = Running(W.shape[1], len(W), device=W.device)
    with inference(sae):
        for batch in batches:
            x, y = _pair(sae, batch)
            codes, y_hat = sae(x.to(W.device))
            running.add(y.reshape(-1, W.shape[1]), y_hat, codes)
    return running.result(sae if weights else None)


def _pair(sae: SAE, batch: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs as rows, and targets."""
    x, y = (batch, batch) if isinstance(batch, Tensor) else batch
    if isinstance(batch, Tensor) and sae.config.d_out is not None:
        raise DataError("a transcoder is measured on pairs (inputs, targets); got inputs alone")
    if x.shape[:-1] != y.shape[:-1]:
        raise DataError(
            f"inputs and targets must pair up; got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return x.reshape(-1, x.shape[-1]), y
