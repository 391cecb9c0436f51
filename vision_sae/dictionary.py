"""Dictionaries whose atoms are not free parameters."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vision_sae.config import Frozen


class Archetypal(Frozen):
    """Atoms near convex combinations of data points (Fel et al. 2025, arXiv 2502.12892).

    W_dec = (rho(W) C + L) exp(m): C [points d] are data points, rho makes rows of W convex weights,
    each row of the relaxation L is at most `delta` long (0: purely archetypal).
    """

    kind: Literal["archetypal"] = "archetypal"
    points: int = Field(1024, ge=1)
    delta: float = Field(1.0, ge=0)


class Archetypes(nn.Module):
    """The parametrisation of W_dec by convex weights W [s points]."""

    C: Tensor

    def __init__(self, config: Archetypal, s: int, d: int) -> None:
        super().__init__()
        self.delta = config.delta
        self.register_buffer("C", torch.zeros(config.points, d))
        self.relaxation = nn.Parameter(torch.zeros(s, d))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, weights: Float[Tensor, "s points"]) -> Float[Tensor, "s d"]:
        convex = weights.relu()
        convex = convex / convex.sum(1, keepdim=True).clamp(min=1e-8)
        return (convex @ self.C + self._short()) * self.log_scale.exp()

    def _short(self) -> Float[Tensor, "s d"]:
        length = self.relaxation.norm(dim=1, keepdim=True)
        factor: Tensor = (self.delta / length.clamp(min=1e-12)).clamp(max=1)
        return self.relaxation * factor

    @staticmethod
    def start(s: int, points: int) -> Float[Tensor, "s points"]:
        """Each latent near one point, with a little of the others."""
        weights = torch.full((s, points), 0.1 / points)
        weights[torch.arange(s), torch.arange(s) % points] = 1.0
        return weights
