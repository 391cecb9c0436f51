"""MSAE (WolodjaZ): a .pt file whose name tells the shape, with the data's mean and scale inside.

Both are folded into the weights: codes are MSAE's, inputs and outputs are in the data's own units.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_sae import families
from vision_sae.errors import CheckpointError
from vision_sae.families import Family
from vision_sae.interop.reading import Weights, assemble, saved_by_torch, tensors_of, unpickle
from vision_sae.sae import SAE

NAME = re.compile(  # latents, inputs, activation, anything, tied, normalised, soft cap
    r"(?P<s>\d+)_(?P<d>\d+)_(?P<activation>[A-Za-z]+)_(?:.*?_)??"
    r"(?P<tied>True|False)_(?P<normalize>True|False)_(?P<cap>\d+(?:\.\d+)?)(?:_.*)?"
)
RECTIFIED = ("ReLU", "TopKReLU", "BatchTopKReLU")


def claims(path: Path) -> bool:
    return {"model", "mean_center", "scaling_factor"} <= set(saved_by_torch(path))


def read(path: Path, *, k: int | None = None) -> SAE:
    """An SAE as MSAE uses it: with all positive latents, or the `k` largest of each row."""
    named = _named(path)
    whole = unpickle(path)
    weights = tensors_of(whole.get("model"), path)
    scale = _data(whole, "scaling_factor", path)
    mean = _data(whole, "mean_center", path)
    weights.ignore("latents_activation_frequency")
    s, d = int(named["s"]), int(named["d"])
    encoder = weights.take("encoder", d, s).T
    decoder = encoder if named["tied"] == "True" else weights.take("decoder", s, d)
    b_enc, bias = weights.take("latent_bias", s), weights.take("pre_bias", d)
    family, extra = _family(weights, named["activation"], k, path)
    weights.finish(f"an MSAE with {named['activation']}")
    b_dec = mean.expand(d) + bias / scale
    return assemble(family, encoder * scale, b_enc, decoder / scale, b_dec, extra=extra)


def _data(whole: dict[str, Any], name: str, path: Path) -> Tensor:
    """The mean (a vector or a number) or the scale (a number) of the data."""
    try:
        found = torch.as_tensor(whole[name]).float()
    except (KeyError, TypeError, ValueError, RuntimeError):
        found = torch.zeros(1, 1)
    if found.ndim > (1 if name == "mean_center" else 0):
        raise CheckpointError(f"{path} holds no usable {name}; it is {whole.get(name)!r}")
    return found


def _named(path: Path) -> dict[str, Any]:
    found = NAME.fullmatch(path.stem)
    if not found:
        raise CheckpointError(
            f"the name of {path} does not tell its shape: LATENTS_INPUTS_ACTIVATION_..._TIED_"
            "NORMALIZED_SOFTCAP_... is needed, as MSAE writes it"
        )
    if found["normalize"] == "True":
        raise CheckpointError(
            f"{path} standardises rows after centring and scaling the data; not supported"
        )
    if float(found["cap"]) > 0:
        raise CheckpointError(
            f"{path} has a soft cap of {found['cap']} on its codes (a tanh); no family of ours has"
        )
    return found.groupdict()


def _family(
    weights: Weights, activation: str, k: int | None, path: Path
) -> tuple[Family, dict[str, Tensor]]:
    if activation == "JumpReLU" and k is None:
        name = "activation.log_threshold"
        (s,) = weights.shape(name, axes=1)
        return families.JumpReLU(), {"thresholds": weights.take(name, s).exp()}
    if activation not in RECTIFIED:
        raise CheckpointError(
            f"{path} has the activation {activation!r}; {', '.join(RECTIFIED)} or JumpReLU "
            "(without k) needed"
        )
    return (families.ReLU() if k is None else families.TopK(k=k)), {}
