"""Numbers over a whole set of activations; sums are kept, and divided once at the end."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.codes import Codes
from vision_sae.hooks import inference
from vision_sae.sae import SAE

DENSE = 0.1  # a latent that fires on more than this share of rows is called dense


@dataclass(frozen=True)
class Metrics:
    """fvu: sum|x - x_hat|^2 / sum|x - mean|^2 over all rows. cosine: mean cos(x, x_hat).

    l0: mean active latents per row. dead, dense: shares of latents that never fire, or fire on more
    than a tenth of the rows. norm_ratio: mean |x_hat| / mean |x|.
    """

    fvu: float
    cosine: float
    l0: float
    dead: float
    dense: float
    norm_ratio: float
    rows: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Running:
    """Accumulates what Metrics needs, in float64, in any batch sizes and any order."""

    def __init__(self, d: int, s: int) -> None:
        self.rows = 0
        self.error = self.cosine = self.active = self.norm = self.norm_hat = 0.0
        self.mean = torch.zeros(d, dtype=torch.float64)
        self.spread = 0.0  # sum |x - mean|^2, merged batch by batch (Chan et al. 1979)
        self.fired = torch.zeros(s, dtype=torch.int64)

    def add(self, x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"], codes: Codes) -> None:
        x, x_hat = x.double(), x_hat.double()
        self._add_spread(x)
        self.error += float((x - x_hat).square().sum())
        self.cosine += float(torch.cosine_similarity(x, x_hat).sum())
        self.norm += float(x.norm(dim=1).sum())
        self.norm_hat += float(x_hat.norm(dim=1).sum())
        active = codes.indices[codes.values > 0]
        self.active += len(active)
        self.fired += torch.bincount(active.cpu(), minlength=len(self.fired))

    def _add_spread(self, x: Float[Tensor, "n d"]) -> None:
        n, batch_mean = len(x), x.mean(0).cpu()
        between = float((batch_mean - self.mean).square().sum())
        total = self.rows + n
        self.spread += float((x.cpu() - batch_mean).square().sum())
        self.spread += between * self.rows * n / total
        self.mean += (batch_mean - self.mean) * (n / total)
        self.rows = total

    def frequencies(self) -> Float[Tensor, " s"]:
        """The share of rows on which each latent fires."""
        return self.fired.double() / max(1, self.rows)

    def result(self) -> Metrics:
        n, share = self.rows, self.frequencies()
        return Metrics(
            fvu=self.error / self.spread if self.spread else math.nan,
            cosine=self.cosine / n,
            l0=self.active / n,
            dead=float((self.fired == 0).double().mean()),
            dense=float((share > DENSE).double().mean()),
            norm_ratio=self.norm_hat / self.norm if self.norm else math.nan,
            rows=n,
        )


def evaluate(sae: SAE, batches: Iterable[Float[Tensor, "... d"]]) -> Metrics:
    """All metrics of an SAE over batches of rows (or of images by tokens)."""
    running = Running(sae.config.d, sae.config.s)
    with inference(sae):
        for batch in batches:
            x = batch.reshape(-1, sae.config.d)
            codes, x_hat = sae(x)
            running.add(x, x_hat, codes)
    return running.result()
