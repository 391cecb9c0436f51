"""Training losses, as plain functions."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vision_sae import kernels
from vision_sae.codes import Codes
from vision_sae.sae import SAE


def fvu(x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Fraction of variance unexplained within the batch: sum |x - x_hat|^2 / sum |x - mean|^2."""
    total = (x - x.mean(0)).square().sum()
    return (x - x_hat).square().sum() / total.clamp(min=torch.finfo(x.dtype).tiny)


def auxk(
    sae: SAE,
    x: Float[Tensor, "n d"],
    residual: Float[Tensor, "n d"],
    dead: Bool[Tensor, " s"],
    k: int,
) -> Float[Tensor, ""]:
    """Dead latents predict what the live ones left over (Gao et al. 2024, appendix A.2).

    The k largest dead pre-activations, rectified, are decoded without bias and compared with the
    detached residual, relative to the residual's variance. 0 when no latent is dead.
    """
    ids = dead.nonzero()[:, 0]
    if not len(ids):
        return x.new_zeros(())
    pre = (x - sae.b_dec) @ sae.W_enc[ids].T + sae.b_enc[ids]  # [n dead]
    values, chosen = pre.topk(min(k, len(ids)), dim=1, sorted=False)
    codes = Codes(values.relu(), chosen, len(ids))
    return fvu(residual.detach(), kernels.decode(codes, sae.W_dec[ids]))
