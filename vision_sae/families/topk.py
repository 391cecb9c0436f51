"""Families that keep a fixed number of latents in each row."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from vision_sae import sharded
from vision_sae.errors import ConfigError
from vision_sae.families.base import At, Family, k_fits
from vision_sae.sparse import screen, select
from vision_sae.sparse.codes import Support
from vision_sae.sparse.select import Product

if TYPE_CHECKING:
    from vision_sae.sae import SAE


class _K(Family):
    competes: ClassVar[bool] = True
    k: int = Field(ge=1)  # active latents per row
    anneal_from: int | None = Field(None, ge=1)  # start with this many, go down linearly
    anneal_share: float = Field(0.5, gt=0, le=1)  # over this share of the training

    def check(self, s: int) -> str | None:
        return k_fits(max(self.k, self.anneal_from or 0), s)

    def fold_norms(self, sae: "SAE", norms: Tensor) -> None:
        needs_competing_norms(self, sae, norms)

    def k_at(self, progress: float) -> int | None:
        if self.anneal_from is None:
            return None
        left = max(0.0, 1 - progress / self.anneal_share)
        return self.k + round((self.anneal_from - self.k) * left)


def needs_competing_norms(family: Family, sae: "SAE", norms: Tensor, hint: str = "") -> None:
    """Raises ConfigError when unit norms would change which latents win."""
    if not sae.config.rescale and bool(((norms - norms[0]).abs() > 1e-6 * norms[0]).any()):
        raise ConfigError(
            f"the norms of a {family.kind} SAE cannot be folded: its latents compete by z alone "
            f"(rescale=False), so other atoms would be chosen{hint}"
        )


class TopK(_K):
    """The k largest of each row, rectified (Gao et al. 2024, arXiv 2406.04093, eq. 2).

    With `multi`, a second reconstruction from multi * k latents is added to the loss with weight
    1/8 (Multi-TopK, same paper, section 4.2, which uses 4).
    """

    kind: Literal["topk"] = "topk"
    multi: int | None = Field(None, ge=2)
    spreads: ClassVar[bool] = True

    def entries(self, sae: "SAE", product: Product, k: int | None) -> tuple[Support, Tensor]:
        k = k or self.k
        if sae.screened and product.exact and product.norms is None:
            z, latents, _ = screen.top(product, min(k, product.shape[1]))
        else:
            z, latents = select.top(product, min(k, product.shape[1]))
        return sharded.kept(product, z, latents, k, sae.group.latents)


class AbsTopK(_K):
    """The k of each row that are largest by absolute value, with their sign, not rectified."""

    kind: Literal["abstopk"] = "abstopk"
    spreads: ClassVar[bool] = True

    def entries(self, sae: "SAE", product: Product, k: int | None) -> tuple[Support, Tensor]:
        k = k or self.k
        z, latents = select.top(product, min(k, product.shape[1]), magnitude=True)
        return sharded.kept(product, z, latents, k, sae.group.latents, magnitude=True)

    def activate(self, sae: "SAE", z: Tensor, at: At) -> Tensor:
        return z


class GroupMax(Family):
    """The largest of each of k equal, consecutive groups of latents, rectified (sparsify)."""

    kind: Literal["groupmax"] = "groupmax"
    competes: ClassVar[bool] = True
    spreads: ClassVar[bool] = True
    k: int = Field(ge=1)  # groups, and so active latents per row

    @classmethod
    def usual_k(cls, s: int) -> int:
        return max(k for k in range(1, 17) if s % k == 0)

    def check(self, s: int) -> str | None:
        return None if s % self.k == 0 else f"k must divide the {s} latents; got {self.k}"

    def fold_norms(self, sae: "SAE", norms: Tensor) -> None:
        needs_competing_norms(self, sae, norms)

    def entries(self, sae: "SAE", product: Product, k: int | None) -> tuple[Support, Tensor]:
        own = (k or self.k) // sae.group.latents.size  # this process's groups
        z, latents = select.group_max(product, own)
        return Support.even(latents, product.shape[1]), z.flatten()
