"""What a sparsity family is: how pre-activations become codes, and what it costs.

A family is a small frozen config. It says which entries may differ from zero (`entries`, without
gradient), what they become (`activate`, plain autograd on the entries), and the loss that keeps
them few (`penalty`). Everything else (products, gradients, the loop) is shared.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.config import Frozen
from vision_sae.errors import ConfigError
from vision_sae.sparse import kernels
from vision_sae.sparse.codes import AnyCodes, Codes, DenseCodes, Support
from vision_sae.sparse.select import Product

if TYPE_CHECKING:
    from vision_sae.losses import Pass
    from vision_sae.sae import SAE

At = Callable[[Tensor], Tensor]  # a number of each latent [s] -> the same at each entry
DENSE_FROM = 1 / 16  # share of active entries above which matrices beat sparse products


class Encoded(NamedTuple):
    """Codes, and the pre-activations at their entries."""

    codes: AnyCodes
    z: Tensor


class Family(Frozen):
    """Base of all families; `kind` is the name in configs and on the command line."""

    kind: str
    competes: ClassVar[bool] = False  # latents are chosen against each other
    spreads: ClassVar[bool] = False  # latents may be shared by several processes (sharded.py)
    loss: ClassVar[str] = "fvu"  # what it is trained with: "fvu", or "mse" in published units
    dead: ClassVar[str] = "auxk"  # the usual treatment of dead latents
    bias_rate: ClassVar[float] = 1.0  # the usual learning rate of b_enc over that of the weights
    start_norm: ClassVar[float] = 1.0  # of each latent's first encoder weights, and of free atoms

    def describe(self) -> str:
        """The family and what its settings differ in from the usual, in words."""
        own = self.model_dump(exclude_defaults=True, exclude={"kind"})
        return ", ".join([self.kind, *(f"{name} {value}" for name, value in own.items())])

    def attach(self, sae: "SAE") -> None:
        """Register the family's own parameters and buffers."""

    def begin(self, sae: "SAE", x: Float[Tensor, "n d"]) -> None:
        """Set on rows, before the first step, what should fit the data."""

    def rates(self) -> dict[str, float]:
        """Learning rates over that of the weights, by parameter."""
        return {"b_enc": self.bias_rate}

    def check(self, s: int) -> str | None:
        """What is wrong with these settings for s latents, in words."""
        return None

    def entries(
        self, sae: "SAE", product: Product, k: int | None
    ) -> tuple[Support, Float[Tensor, " e"]]:
        """Where codes may differ from zero (or have a gradient), and z there."""
        raise NotImplementedError

    def activate(self, sae: "SAE", z: Tensor, at: At) -> Tensor:
        """Pre-activations to codes, entry by entry."""
        return z.relu()

    def penalty(self, p: "Pass") -> Tensor | None:
        """The sparsity loss, mean over rows; None when selection alone keeps codes sparse."""
        return None

    def floor(self, sae: "SAE") -> Float[Tensor, " s"]:
        """The pre-activation above which each latent is active."""
        return torch.zeros_like(sae.b_enc)

    def follow(self, sae: "SAE", codes: AnyCodes) -> None:
        """Note what a training batch gave, for what inference needs (a running threshold)."""

    def calibrate(self, sae: "SAE", x: Float[Tensor, "n d"]) -> None:
        """Set on rows, after training, what inference needs."""

    def training_state(self) -> dict[str, Tensor]:
        """Tensors that the penalty keeps between steps; they are saved with a training's state."""
        return {}

    def density(self, sae: "SAE", z: Float[Tensor, "n s"]) -> float:
        """The share of entries that may differ from zero; 0 when few by construction."""
        return 0.0

    def rescale(self, sae: "SAE", scale: float, out: float) -> None:
        """Divide the family's own tensors by the scale of what they are compared with.

        z is in units of the input, of which `scale` is the factor; `out` is the targets'.
        """

    def fold_norms(self, sae: "SAE", norms: Float[Tensor, " s"]) -> None:
        """Adapt the family's own tensors to z times norm. Raises ConfigError when none can be."""

    @classmethod
    def usual_k(cls, s: int) -> int:
        """The k for s latents when none is given, of families that have one."""
        return min(16, s)

    def k_at(self, progress: float) -> int | None:
        """The number of active latents at this share of the training, where it varies."""
        return None

    def encode(
        self,
        sae: "SAE",
        x: Float[Tensor, "n d"],
        *,
        k: int | None = None,
        prefix: int | None = None,
        centre: Float[Tensor, " d"] | None = None,
    ) -> Encoded:
        """Codes of centred rows; `centre` is what was taken off them and awaits its gradient.

        With `prefix` only the first latents compete with each other, where latents do.
        """
        if k is not None and "k" not in type(self).model_fields:
            raise ConfigError(f"the {self.kind} family has no k to choose")
        if sae.training and self._mostly_active(sae, x):
            z = F.linear(following(x, centre), sae.W_enc, sae.b_enc).to(x.dtype)
            return Encoded(DenseCodes(self.activate(sae, z, lambda t: t)), z)
        with torch.no_grad():
            product = Product.of(x, sae.W_enc, sae.b_enc, sae.competing_norms())
            support, known = self.entries(sae, product.first(prefix), k)
            if prefix is not None:
                support = replace(support, width=sae.config.s)
            if sae.row_gradients:
                support = replace(support, row_gradients=True)
        z = known
        if torch.is_grad_enabled() or not product.exact:
            exact = known if product.exact else None
            z = kernels.project(x, sae.W_enc, sae.b_enc, support, exact, centre)
        values = self.activate(sae, z, lambda t: t[support.indices])
        return Encoded(Codes(values, support), z)

    @torch.no_grad()
    def _mostly_active(self, sae: "SAE", x: Tensor, sample: int = 64) -> bool:
        few = x[:: max(1, len(x) // sample)]
        if type(self).density is Family.density:
            return False
        return self.density(sae, F.linear(few, sae.W_enc, sae.b_enc)) > DENSE_FROM


def k_fits(k: int, s: int) -> str | None:
    """What is wrong with k active ones of s latents, in words."""
    return None if k <= s else f"k must lie in 1..{s} (the number of latents); got {k}"


def following(x: Float[Tensor, "n d"], centre: Tensor | None) -> Float[Tensor, "n d"]:
    """x unchanged, with the gradient of what was taken off it."""
    return x if centre is None else x - (centre - centre.detach())
