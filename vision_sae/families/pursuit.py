"""Matching pursuit: latents are chosen one after the other, each on what the others left."""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vision_sae.errors import ConfigError
from vision_sae.families.base import Encoded, Family, following, k_fits
from vision_sae.sparse.codes import Codes

if TYPE_CHECKING:
    from vision_sae.sae import SAE


class MatchingPursuit(Family):
    """k steps of r <- r - c w with w the atom of largest inner product c with the residual r.

    Costa et al. 2025 (arXiv 2506.03093), section 3. The encoder is the dictionary itself (tied,
    no encoder bias) and the gradient flows through all steps. `rectified` refuses negative
    products, as SAELens does; the paper's code takes the largest as it is. A row stops early
    when its residual is no longer than `residual`, and with `stop_on_repeat` (SAELens) once an atom
    was chosen twice; the codes of such an atom add up.
    """

    kind: Literal["mp"] = "mp"
    k: int = Field(ge=1)  # steps
    rectified: bool = True
    residual: float = Field(0.0, ge=0)
    stop_on_repeat: bool = False
    dead: ClassVar[str] = "none"

    def check(self, s: int) -> str | None:
        return k_fits(self.k, s)

    def rescale(self, sae: "SAE", scale: float, out: float) -> None:
        family = self.model_copy(update={"residual": self.residual / scale})
        sae.config = sae.config.model_copy(update={"sparsity": family})

    def encode(
        self,
        sae: "SAE",
        x: Tensor,
        *,
        k: int | None = None,
        prefix: int | None = None,
        centre: Tensor | None = None,
    ) -> Encoded:
        if prefix is not None:
            raise ConfigError("matching pursuit chooses among all atoms, not in a prefix")
        residual, atoms = following(x, centre), sae.W_dec
        going = torch.ones(len(x), dtype=torch.bool, device=x.device)
        values: list[Tensor] = []
        indices: list[Tensor] = []
        for _ in range(k or self.k):
            with torch.no_grad():
                chosen = (residual @ atoms.T).argmax(1)
            picked = atoms[chosen]
            strength = self._strength(residual, picked) * going
            residual = residual - strength[:, None] * picked
            going = going & (residual.detach().norm(dim=1) > self.residual)
            if self.stop_on_repeat and indices:
                going = going & (torch.stack(indices) != chosen).all(0)
            values.append(strength)
            indices.append(chosen)
        codes = Codes.even(torch.stack(values, 1), torch.stack(indices, 1), sae.config.s)
        return Encoded(codes.merged(), codes.values)

    def _strength(self, residual: Tensor, picked: Tensor) -> Tensor:
        product = (residual * picked).sum(1)
        return product.relu() if self.rectified else product
