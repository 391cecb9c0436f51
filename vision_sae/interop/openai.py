"""openai/sparse_autoencoder: a state dict that also names its activation.

TopK ones standardise each row and undo that on the output, ReLU ones read rows as they are.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from vision_sae import families
from vision_sae.errors import CheckpointError
from vision_sae.families import Family
from vision_sae.interop.reading import Loose, assemble, parse, saved_by_torch, tensors_of, unpickle
from vision_sae.sae import SAE

COUNTERS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


class Inner(Loose):
    """The state of a TopK activation; a ReLU has none."""

    k: int | None = Field(None, ge=1)
    postact_fn: Literal["ReLU"] = "ReLU"


class Activation(Loose):
    """What the state dict says of the activation."""

    activation: Literal["ReLU", "TopK"] = "ReLU"
    activation_state_dict: Inner = Inner()


def claims(path: Path) -> bool:
    return {"pre_bias", "latent_bias", "encoder.weight"} <= set(saved_by_torch(path))


def read(path: Path) -> SAE:
    """A TopK or ReLU autoencoder; codes are its own."""
    state = unpickle(path)
    names = ("activation", "activation_state_dict")
    activation = parse(Activation, {n: state.pop(n) for n in names if n in state}, path)
    weights = tensors_of(state, path)
    weights.ignore(*COUNTERS)
    s, d = weights.shape("encoder.weight")
    W_enc = weights.take("encoder.weight", s, d)
    tied = "decoder.linear.weight" in weights.tensors
    W_dec = (
        weights.take("decoder.linear.weight", s, d)
        if tied
        else weights.take("decoder.weight", d, s).T
    )
    b_enc, b_dec = weights.take("latent_bias", s), weights.take("pre_bias", d)
    weights.finish("such an autoencoder")
    rows = "layer_norm" if activation.activation == "TopK" else "none"
    family = _family(activation, path)
    return assemble(family, W_enc, b_enc, W_dec, b_dec, rows=rows, tied=tied)


def _family(found: Activation, path: Path) -> Family:
    if found.activation == "ReLU":
        return families.ReLU()
    if found.activation_state_dict.k is None:
        raise CheckpointError(f"{path} is a TopK autoencoder without its k")
    return families.TopK(k=found.activation_state_dict.k)
