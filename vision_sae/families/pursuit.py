"""Matching pursuit: latents are chosen one after the other, each on what the others left."""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vision_sae.codes import Codes
from vision_sae.families.base import Encoded, Family

if TYPE_CHECKING:
    from vision_sae.sae import SAE


class MatchingPursuit(Family):
    """k steps of r <- r - c w with w the atom of largest inner product c with the residual r.

    Costa et al. 2025 (arXiv 2506.03093), section 3. The encoder is the dictionary itself (tied,
    no encoder bias) and the gradient flows through all steps. `rectified` refuses negative
    products, as SAELens does; the paper's code takes the largest as it is. A row stops early when
    its residual is shorter than `residual`. An atom may be chosen twice: its codes add up.
    """

    kind: Literal["mp"] = "mp"
    k: int = Field(ge=1)
    rectified: bool = True
    residual: float = Field(0.0, ge=0)
    dead: ClassVar[str] = "none"

    def check(self, s: int) -> str | None:
        return (
            None if self.k <= s else f"k must lie in 1..{s} (the number of latents); got {self.k}"
        )

    def encode(self, sae: "SAE", x: Tensor, *, k: int | None = None) -> Encoded:
        residual, atoms = x, sae.W_dec
        values, indices = [], []
        for _ in range(k or self.k):
            with torch.no_grad():
                chosen = (residual @ atoms.T).argmax(1)
            picked = atoms[chosen]
            strength = self._strength(residual, picked)
            residual = residual - strength[:, None] * picked
            values.append(strength)
            indices.append(chosen)
        codes = Codes.even(torch.stack(values, 1), torch.stack(indices, 1), sae.config.s)
        return Encoded(codes.merged(), codes.values)

    def _strength(self, residual: Tensor, picked: Tensor) -> Tensor:
        product = (residual * picked).sum(1)
        if self.rectified:
            product = product.relu()
        going: Tensor = residual.norm(dim=1) > self.residual
        return product * going
