"""What a training learns from a sample of its data before the first step."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vision_sae.errors import ConfigError
from vision_sae.sae import SAE
from vision_sae.source import Source, pair
from vision_sae.statistics import centre, kmeans
from vision_sae.train.checks import check_finite
from vision_sae.train.config import TrainConfig
from vision_sae.train.inputs import Inputs, unit_scale, whitening

SAMPLE = 2**15  # rows


@torch.no_grad()
def begin_fresh(sae: SAE, source: Source, config: TrainConfig) -> Inputs:
    """The treatment of inputs; b_dec starts at the middle of the treated targets."""
    x, target = _sample(sae, source, config)
    middle = centre(target, config.centre)
    inputs = _fitted(sae, config, x, target, middle)
    treated = inputs.apply if sae.config.d_out is None else inputs.apply_out
    sae.b_dec.copy_(treated(middle))
    rows = inputs.apply(x)
    if sae.config.dictionary:
        _place_archetypes(sae, rows, config.seed)
    sae.config.sparsity.begin(sae, rows)
    return inputs


@torch.no_grad()
def begin_trained(sae: SAE, source: Source, config: TrainConfig) -> Inputs:
    """The treatment of inputs; a trained SAE is brought into its units and changed no further."""
    if config.inputs == "whiten":
        raise ConfigError("a trained SAE goes on with inputs='scale' or 'none', not 'whiten'")
    x, target = _sample(sae, source, config)
    inputs = _fitted(sae, config, x, target, centre(target, config.centre))
    Inputs(1 / inputs.scale, 1 / inputs.scale_out).fold(sae)
    return inputs


def _sample(sae: SAE, source: Source, config: TrainConfig) -> tuple[Tensor, Tensor]:
    x, target = pair(source.sample(SAMPLE, seed=config.seed))
    x = sae.treated(x.to(sae.b_dec)).rows
    target = target.to(sae.b_dec) if sae.config.d_out is not None else x
    for rows in (x, target):
        check_finite(rows, "a sample of the activations")
    return x, target


def _fitted(sae: SAE, config: TrainConfig, x: Tensor, target: Tensor, middle: Tensor) -> Inputs:
    if config.inputs == "none" or sae.config.rows != "none":
        return Inputs.untreated()
    if config.inputs == "whiten":
        return whitening(x)
    inputs = Inputs.untreated()
    inputs.scale_out = unit_scale(target, middle)
    separate = sae.config.d_out is not None
    inputs.scale = unit_scale(x, x.mean(0)) if separate else inputs.scale_out.clone()
    return inputs


def _place_archetypes(sae: SAE, rows: Float[Tensor, "n d"], seed: int) -> None:
    """Data points for an archetypal dictionary, by k-means; the encoder starts at its atoms."""
    shape: Any = sae.parametrizations.W_dec[0]  # type: ignore[union-attr,index]
    shape.C.copy_(kmeans(rows - sae.b_dec, len(shape.C), seed=seed))
    sae.W_enc.copy_(nn.functional.normalize(sae.W_dec, dim=1))
