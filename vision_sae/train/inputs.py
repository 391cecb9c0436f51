"""The affine treatment of all inputs in training, folded into the weights of what is saved."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError
from vision_sae.fold import fold_scale, fold_whitening
from vision_sae.sae import SAE


@dataclass
class Inputs:
    """x -> scale * x, or (x - mean) @ matrix for whitening; targets of another width have their own
    scale. All are tensors, so that they are saved with a training's state."""

    scale: Float[Tensor, ""]
    scale_out: Float[Tensor, ""]
    mean: Float[Tensor, " d"] | None = None
    matrix: Float[Tensor, "d d"] | None = None
    inverse: Float[Tensor, "d d"] | None = None

    @classmethod
    def untreated(cls) -> "Inputs":
        one = torch.tensor(1.0, dtype=torch.float64)
        return cls(one, one.clone())

    def apply(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        if self.mean is not None and self.matrix is not None:
            return (x - self.mean.to(x)) @ self.matrix.to(x)
        return x * float(self.scale)

    def apply_out(self, y: Float[Tensor, "*n o"]) -> Float[Tensor, "*n o"]:
        """The treatment of a transcoder's targets."""
        return y * float(self.scale_out)

    def fold(self, sae: SAE) -> None:
        """Turn an SAE of treated inputs into one of the data itself."""
        if self.mean is not None and self.matrix is not None and self.inverse is not None:
            fold_whitening(
                sae, self.mean.to(sae.b_dec), self.matrix.to(sae.b_dec), self.inverse.to(sae.b_dec)
            )
        elif sae.config.d_out is not None:
            fold_scale(sae, float(self.scale), float(self.scale_out))
        else:
            fold_scale(sae, float(self.scale))

    def tensors(self) -> dict[str, Tensor]:
        return {name: t for name, t in vars(self).items() if t is not None}


def unit_scale(x: Float[Tensor, "n d"], middle: Float[Tensor, " d"]) -> Float[Tensor, ""]:
    """The factor that gives rows a mean distance of sqrt(d) from their middle."""
    norm = float((x - middle).norm(dim=1).mean())
    return torch.tensor(math.sqrt(x.shape[1]) / norm if norm > 0 else 1.0, dtype=torch.float64)


def whitening(x: Float[Tensor, "n d"], *, floor: float = 1e-4) -> Inputs:
    """PCA whitening: (x - mean) @ matrix has unit covariance.

    Directions with less than `floor` of the largest variance are scaled as if they had that much:
    their noise is not blown up. Raises ConfigError for rows that do not vary.
    """
    mean = x.mean(0)
    covariance = torch.cov((x - mean).T.double())
    variance, axes = torch.linalg.eigh(covariance)
    if not float(variance[-1]) > 0:
        raise ConfigError("inputs='whiten' needs rows that vary; these are all the same")
    deviation = variance.clamp(min=floor * float(variance[-1])).sqrt()
    inputs = Inputs.untreated()
    inputs.mean = mean
    inputs.matrix = (axes / deviation @ axes.T).to(x.dtype)
    inputs.inverse = (axes * deviation @ axes.T).to(x.dtype)
    return inputs
