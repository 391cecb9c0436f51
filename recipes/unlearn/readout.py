"""The codes of a few latents alone: their encoder rows, where an SAE has thresholds."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.families import BatchTopK
from vision_sae.rows import RowNorm
from vision_sae.sae import SAE


@dataclass(frozen=True, eq=False)
class Readout:
    """f = z where z is above the latent's threshold, 0 elsewhere; z = x W' + b.

    What edits need of an SAE whose latents do not compete: |S| dot products per position. `rows`
    is what is done to each row before, undone on what is added.
    """

    weight: Float[Tensor, "m d"]
    b: Float[Tensor, " m"]
    threshold: Float[Tensor, " m"]
    atoms: Float[Tensor, "m d"]
    rows: RowNorm = "none"

    @classmethod
    def of(cls, sae: SAE, latents: Int[Tensor, " m"]) -> "Readout | None":
        """Of ReLU, BatchTopK and JumpReLU SAEs; None where all latents are needed (TopK)."""
        threshold = _threshold(sae, latents)
        if threshold is None or sae.config.d_out is not None:
            return None
        weight = sae.W_enc.detach()[latents]
        b = sae.b_enc.detach()[latents]
        if sae.config.centred:
            b = b - weight @ sae.b_dec.detach()
        return cls(weight, b, threshold, sae.W_dec.detach()[latents].clone(), sae.config.rows)

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("weight", "b", "threshold", "atoms")}

    def to(self, device: torch.device) -> "Readout":
        moved = {name: t.to(device) for name, t in self.tensors().items()}
        return Readout(**moved, rows=self.rows)

    def part(self, columns: Int[Tensor, " w"]) -> "Readout":
        """Of some of the latents alone."""
        return Readout(**{n: t[columns] for n, t in self.tensors().items()}, rows=self.rows)

    def codes(self, rows: Float[Tensor, "*n d"]) -> Float[Tensor, "*n m"]:
        """Of rows after their treatment."""
        z = F.linear(rows, self.weight, self.b)
        return z * (z > self.threshold)


def _threshold(sae: SAE, latents: Tensor) -> Tensor | None:
    family, m = sae.config.sparsity, len(latents)
    if isinstance(family, BatchTopK):
        theta = sae.inference_threshold().clamp(min=0).expand(m)
        norms = sae.competing_norms()
        return theta.clone() if norms is None else theta / norms[latents]
    if family.kind in ("relu", "panneal"):
        return torch.zeros(m, device=latents.device)
    if family.kind == "jumprelu":
        return family.floor(sae)[latents].detach()
    return None
