"""BatchTopK: a budget for the whole batch in training, a threshold at inference."""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, DataError
from vision_sae.families.topk import _K, needs_competing_norms
from vision_sae.sparse import select
from vision_sae.sparse.codes import AnyCodes, Support
from vision_sae.sparse.select import Product

if TYPE_CHECKING:
    from vision_sae.sae import SAE

RATE = 0.01  # of the running threshold, as in SAELens


class BatchTopK(_K):
    """The k*n largest of each training batch, rectified (Bussmann et al. 2024, arXiv 2412.06410).

    At inference every row is read alone, against one threshold: the calibrated one (mean L0 of k
    on held-out rows) or the running average of the smallest kept value; both are stored. Atoms are
    free by default, and latents compete by z alone: see SAEConfig for what that is worth.
    """

    kind: Literal["batchtopk"] = "batchtopk"
    spreads: ClassVar[bool] = True

    def attach(self, sae: "SAE") -> None:
        sae.register_buffer("threshold", torch.tensor(torch.nan))
        sae.register_buffer("threshold_ema", torch.tensor(torch.nan))

    def rescale(self, sae: "SAE", scale: float, out: float) -> None:
        factor = out if sae.config.rescale else scale  # z times norm is in units of the target
        sae.threshold.div_(factor)
        sae.threshold_ema.div_(factor)

    def fold_norms(self, sae: "SAE", norms: Tensor) -> None:
        """Raises ConfigError for free atoms without `rescale`: one threshold cannot follow."""
        needs_competing_norms(self, sae, norms, hint="; fold_threshold first makes it a JumpReLU")
        if not sae.config.rescale:  # the norms are all the same, and the threshold was on z
            sae.threshold.mul_(norms[0])
            sae.threshold_ema.mul_(norms[0])

    def entries(self, sae: "SAE", product: Product, k: int | None) -> tuple[Support, Tensor]:
        if sae.training or k is not None:
            return select.batch_top(product, k or self.k, sae.group)
        theta = self.threshold(sae).clamp(min=0)
        return select.above(product, theta)

    def threshold(self, sae: "SAE") -> Float[Tensor, ""]:
        """The one in use. Raises ConfigError when there is none yet."""
        choice = sae.threshold_choice
        value = sae.threshold if choice == "calibrated" else sae.threshold_ema
        if value.isnan() and choice == "calibrated":
            value = sae.threshold_ema
        if value.isnan():
            raise ConfigError(
                "this BatchTopK SAE has no inference threshold yet: train it, or set one with "
                "calibrate"
            )
        return value

    @torch.no_grad()
    def calibrate(self, sae: "SAE", x: Float[Tensor, "n d"]) -> None:
        """Store the exact threshold at which the mean L0 over these rows is k.

        Raises DataError where no latent is active.
        """
        scores = self.scores(sae, sae.encoded(x, k=self.k).codes)  # of the rows together
        positive = scores[scores > 0]
        least = sae.group.latents.least(positive.min() if len(positive) else None)
        if least is None:
            raise DataError(f"no latent is active on any of {len(x)} rows: nothing to calibrate on")
        sae.threshold.copy_(least * (1 - 1e-6))  # above this, strictly

    def scores(self, sae: "SAE", codes: AnyCodes) -> Float[Tensor, " e"]:
        """What competed: codes, times norms if so configured."""
        norms = sae.competing_norms()
        return codes.values if norms is None else codes.values * codes.per_entry(norms)

    @torch.no_grad()
    def follow(self, sae: "SAE", codes: AnyCodes) -> None:
        """Move the running threshold towards the smallest kept value of a batch."""
        scores = self.scores(sae, codes)
        least = sae.group.least(scores[scores > 0].min() if bool((scores > 0).any()) else None)
        if least is not None:
            ema = sae.threshold_ema
            least = least.to(ema)
            ema.copy_(torch.where(ema.isnan(), least, ema.lerp(least, RATE)))
