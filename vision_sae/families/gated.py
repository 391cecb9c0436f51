"""Gated SAEs: one projection decides which latents are on, a rescaled twin says how much."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from vision_sae.families.base import At
from vision_sae.families.relu import Rectified
from vision_sae.sparse import kernels

if TYPE_CHECKING:
    from vision_sae.losses import Pass
    from vision_sae.sae import SAE


class Gated(Rectified):
    """f = H(z) relu(exp(r_mag) (x W_enc) + b_mag), where z = x W_enc + b_enc is the gate.

    Loss (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 8): reconstruction, coefficient * sum
    relu(z) n, and the error of a reconstruction from relu(z) through a frozen decoder, so that the
    gate learns from the last two only.
    """

    kind: Literal["gated"] = "gated"

    def attach(self, sae: "SAE") -> None:
        sae.r_mag = nn.Parameter(torch.zeros(sae.config.s))
        sae.b_mag = nn.Parameter(torch.zeros(sae.config.s))

    def rescale(self, sae: "SAE", scale: float, out: float) -> None:
        sae.b_mag.div_(scale)

    def fold_norms(self, sae: "SAE", norms: Tensor) -> None:
        sae.b_mag.mul_(norms)

    def activate(self, sae: "SAE", z: Tensor, at: At) -> Tensor:
        magnitude = at(sae.r_mag.exp()) * (z - at(sae.b_enc)) + at(sae.b_mag)
        return (z > 0).to(z.dtype) * magnitude.relu()

    def penalty(self, p: "Pass") -> Tensor | None:
        gate = p.codes.map(lambda _: p.z.relu())
        latents = p.group.latents
        guess = latents.joined(kernels.decode(gate, p.sae.W_dec.detach())) + p.sae.b_dec.detach()
        error = latents.part_of((p.target - guess).square().sum())
        total: Tensor = self.coefficient * p.weighted(gate).sum() + error
        return total / p.rows
