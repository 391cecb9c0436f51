"""overcomplete (KempnerInstitute): a state dict saved with torch.

The state dict does not hold the class, k, the running threshold and the normalisation of the
dictionary; they are settings of the reader. Whole pickled models are refused.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae import families
from vision_sae.errors import CheckpointError
from vision_sae.families import Family
from vision_sae.interop.reading import Weights, assemble, saved_by_torch, tensors_of, unpickle
from vision_sae.sae import SAE

ATOMS = "dictionary._weights"
KINDS = ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE", "MpSAE")
NORMALIZATIONS = ("l2", "max_l2", "l1", "max_l1", "identity")
BLOCK = "encoder.final_block."


def claims(path: Path) -> bool:
    return ATOMS in saved_by_torch(path)


def read(
    path: Path,
    *,
    kind: str | None = None,
    k: int | None = None,
    threshold: float | None = None,
    normalization: str = "l2",
) -> SAE:
    """An SAE of one linear encoder (with a batch norm or tied, too).

    `kind` is its class, `k` the top_k of a TopKSAE or BatchTopKSAE or the k of an MpSAE,
    `threshold` the running_threshold of a BatchTopKSAE, `normalization` the dictionary's.
    """
    weights = tensors_of(unpickle(path), path)
    s, d = weights.shape(ATOMS)
    jumps = "thresholds" in weights.tensors
    kind = _checked(path, kind or ("JumpSAE" if jumps else None), jumps)
    tied = "encoder.tied_to._weights" in weights.tensors or kind == "MpSAE"
    atoms = _atoms(weights, s, d, normalization)
    family, extra = _family(weights, s, kind, k, threshold)
    W_enc, b_enc = (atoms, _tied_bias(weights, s)) if tied else _encoder(weights, s, d)
    weights.finish(f"a {kind} with a linear encoder")
    return assemble(
        family, W_enc, b_enc, atoms, torch.zeros(d), extra=extra, tied=tied, centred=kind == "MpSAE"
    )


def _checked(path: Path, kind: str | None, jumps: bool) -> str:
    if kind not in KINDS:
        given = "its class is not in the file: pass kind" if kind is None else f"no kind {kind!r}"
        raise CheckpointError(f"{path}: {given}; there are: {', '.join(KINDS)}")
    if jumps != (kind == "JumpSAE"):
        held = "holds" if jumps else "does not hold"
        raise CheckpointError(f"{path} {held} the thresholds of a JumpSAE; it was read as a {kind}")
    return kind


def _family(
    weights: Weights, s: int, kind: str, k: int | None, threshold: float | None
) -> tuple[Family, dict[str, Tensor]]:
    path = weights.source
    if kind == "SAE":
        return families.ReLU(), {}
    if kind == "JumpSAE":  # >= there and > here: the same but for a pre-activation at the threshold
        return families.JumpReLU(), {"thresholds": weights.take("thresholds", s).exp()}
    if k is None:
        raise CheckpointError(f"{path}: the k of a {kind} is not in the file: pass k")
    if kind == "TopKSAE":
        return families.TopK(k=k), {}
    if kind == "MpSAE":
        return families.MatchingPursuit(k=k, rectified=False), {}
    if threshold is None or threshold <= 0:
        raise CheckpointError(
            f"{path}: a BatchTopKSAE keeps its running_threshold outside the file, and without one "
            f"every latent would be active: pass threshold; got {threshold}"
        )
    # k is of the whole batch there; it only matters for training on
    return families.BatchTopK(k=k), {"threshold": torch.tensor(threshold)}


def _atoms(weights: Weights, s: int, d: int, normalization: str) -> Float[Tensor, "s d"]:
    """The dictionary as it is used: normalised, times exp(multiplier)."""
    if normalization not in NORMALIZATIONS:
        allowed = ", ".join(NORMALIZATIONS)
        raise CheckpointError(f"no normalization {normalization!r}; there are: {allowed}")
    raw = weights.take(ATOMS, s, d)
    length = raw.norm(p=1 if normalization.endswith("l1") else 2, dim=1, keepdim=True)
    if normalization.startswith("max"):
        raw = raw / length.max()
    elif normalization != "identity":
        raw = raw / (length + 1e-8)
    return raw * weights.take("dictionary.multiplier").exp()


def _tied_bias(weights: Weights, s: int) -> Float[Tensor, " s"]:
    weights.ignore("encoder.tied_to._weights", "encoder.tied_to.multiplier")
    return weights.take("encoder.bias", s) if "encoder.bias" in weights.tensors else torch.zeros(s)


def _encoder(weights: Weights, s: int, d: int) -> tuple[Tensor, Tensor]:
    """W_enc and b_enc, a batch norm behind them folded in."""
    own = "encoder.weight" in weights.tensors
    name = "encoder." if own else f"{BLOCK}0."
    W_enc = weights.take(f"{name}weight", s, d)
    has_bias = f"{name}bias" in weights.tensors
    b_enc = weights.take(f"{name}bias", s) if has_bias else torch.zeros(s)
    if f"{BLOCK}1.weight" not in weights.tensors:
        return W_enc, b_enc
    if f"{BLOCK}1.running_var" not in weights.tensors:
        raise CheckpointError(
            f"the encoder in {weights.source} ends in a layer norm over the latents, which no "
            "linear encoder can express"
        )
    norm = {n: weights.take(f"{BLOCK}1.{n}", s) for n in ("weight", "bias", "running_mean")}
    gain = norm["weight"] / (weights.take(f"{BLOCK}1.running_var", s) + 1e-5).sqrt()
    weights.ignore(f"{BLOCK}1.num_batches_tracked")
    return W_enc * gain[:, None], (b_enc - norm["running_mean"]) * gain + norm["bias"]
