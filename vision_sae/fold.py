"""Exact changes of units: an SAE trained on treated inputs becomes one of the inputs themselves."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vision_sae.errors import ConfigError
from vision_sae.families import JumpReLU
from vision_sae.sae import SAE


@torch.no_grad()
def fold_scale(sae: SAE, scale: float, scale_out: float | None = None) -> None:
    """Turn an SAE of (scale * x) -> (scale_out * y) into one of x -> y.

    Families commute with positive factors, so only biases and thresholds are divided by the scale;
    atoms keep their norm and codes come out in the data's units. The inverse is
    fold_scale(1 / scale).
    """
    out = scale if scale_out is None else scale_out
    sae.b_enc.div_(scale)
    sae.b_dec.div_(out)
    if sae.levels is not None:
        sae.levels.shift.div_(scale)
    sae.config.sparsity.rescale(sae, scale, out)
    if out != scale:
        sae.W_dec.mul_(scale / out)
    if sae.W_skip is not None:
        sae.W_skip.mul_(scale / out)
    sae.scale.mul_(scale)


@torch.no_grad()
def fold_whitening(
    sae: SAE, mean: Float[Tensor, " d"], matrix: Float[Tensor, "d d"], inverse: Float[Tensor, "d d"]
) -> None:
    """Turn an SAE of (x - mean) @ matrix, undone by @ inverse + mean, into one of x.

    Codes stay in whitened units, so a row's codes are the same as before (times their atoms' norms,
    where latents compete by those). Atoms lose unit norm and tied weights part. Raises ConfigError
    for matching pursuit, which needs both.
    """
    if sae.config.sparsity.kind == "mp":
        raise ConfigError("matching pursuit has tied, unit atoms: its inputs cannot be whitened")
    if sae.config.rescale:
        fold_norms(sae)  # before the norms are others
    untie(sae)
    if not sae.config.centred:
        sae.b_enc.sub_(sae.W_enc @ (mean @ matrix))
    sae.b_dec.copy_(sae.b_dec @ inverse + mean)
    sae.W_enc.copy_(sae.W_enc @ matrix.T)
    sae.W_dec.copy_(sae.W_dec @ inverse)
    sae.config = sae.config.model_copy(update={"atoms": "free"})


@torch.no_grad()
def untie(sae: SAE) -> None:
    """Give tied or parametrised weights tensors of their own."""
    if sae.config.dictionary:
        parametrize.remove_parametrizations(sae, "W_dec", leave_parametrized=True)
    elif sae.config.tied:
        sae.W_dec = nn.Parameter(sae.W_dec.detach().clone())
    sae.config = sae.config.model_copy(update={"tied": False, "dictionary": None})


@torch.no_grad()
def fold_norms(sae: SAE) -> None:
    """Give every atom unit norm, without changing which latents are active or what they add.

    Codes come out times the norms. Raises ConfigError, and changes nothing, where that would change
    the choice: a family in which latents compete by z alone. A BatchTopK SAE of that kind can be
    folded after `fold_threshold`.
    """
    if sae.config.sparsity.kind == "mp":
        return  # unit by definition
    norms = sae.W_dec.norm(dim=1).clamp(min=1e-12)
    sae.config.sparsity.fold_norms(sae, norms)
    untie(sae)
    sae.W_dec.div_(norms[:, None])
    sae.W_enc.mul_(norms[:, None])
    sae.b_enc.mul_(norms)
    if sae.levels is not None:
        sae.levels.shift.mul_(norms[:, None])
    sae.config = sae.config.model_copy(update={"rescale": False, "atoms": "unit"})


@torch.no_grad()
def fold_threshold(sae: SAE) -> None:
    """Turn a BatchTopK SAE into the JumpReLU SAE that it is at inference, codes and all.

    It has a threshold per latent, which can follow the norms of free atoms (`fold_norms`); k, and
    with it the choice within a batch, is gone. Raises ConfigError without a threshold.
    """
    theta = thresholds(sae)
    del sae.threshold, sae.threshold_ema
    sae.config = sae.config.model_copy(update={"sparsity": JumpReLU(), "rescale": False})
    sae.thresholds = nn.Parameter(theta)


@torch.no_grad()
def thresholds(sae: SAE) -> Float[Tensor, " s"]:
    """What z of each latent must exceed, of a JumpReLU or BatchTopK SAE. Raises ConfigError."""
    family = sae.config.sparsity
    if isinstance(family, JumpReLU):
        return family.floor(sae).clone()
    theta = sae.inference_threshold().clamp(min=0).expand(sae.config.s)
    norms = sae.competing_norms()
    return theta.clone() if norms is None else theta / norms.clamp(min=1e-8)
