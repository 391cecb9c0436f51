"""dictionary_learning (saprmarks, and adamkarvonen's): `ae.pt`, with `config.json` beside it.

The factor of a training on normalised inputs is in the saved biases already. An AutoEncoder is read
as it was saved (its own loader scales codes by the atoms' norms unless told not to).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_sae import families
from vision_sae.errors import CheckpointError
from vision_sae.interop.reading import (
    Loose,
    Weights,
    assemble,
    parse,
    read_json,
    saved_by_torch,
    tensors_of,
    threshold_of,
    unpickle,
)
from vision_sae.nest import Prefixes
from vision_sae.sae import SAE

WEIGHTS, CONFIG = "ae.pt", "config.json"
LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
OWN = {"W_enc", "b_enc", "W_dec", "b_dec"}
KEYS: dict[str, set[str]] = {
    "AutoEncoder": LINEAR | {"bias"},
    "AutoEncoderNew": LINEAR | {"decoder.bias"},
    "GatedAutoEncoder": {
        "encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias",
    },
    "JumpReluAutoEncoder": OWN | {"threshold"},
    "AutoEncoderTopK": LINEAR | {"b_dec", "k", "threshold"},
    "BatchTopKSAE": LINEAR | {"b_dec", "k", "threshold"},
    "MatryoshkaBatchTopKSAE": OWN | {"k", "threshold", "group_sizes"},
}  # fmt: skip
OPTIONAL = {"threshold"}  # a TopK SAE of before 2025 has none


class Trainer(Loose):
    """What made the dictionary."""

    dict_class: str | None = None


class Run(Loose):
    """config.json."""

    trainer: Trainer = Trainer()


def claims(path: Path) -> bool:
    if path.is_dir():
        return (path / WEIGHTS).is_file()
    return bool(_kinds(set(saved_by_torch(path))))


def read(path: Path, *, kind: str | None = None) -> SAE:
    """A dictionary. `kind` is its class, where neither config.json nor the tensors tell."""
    file = path / WEIGHTS if path.is_dir() else path
    weights = tensors_of(unpickle(file), file)
    kind = _kind(weights, file, kind or _configured(file.with_name(CONFIG)))
    sae = _linear(weights, kind) if "encoder.weight" in KEYS[kind] else _own(weights, kind)
    weights.finish(f"a {kind}")
    return sae


def _kinds(keys: set[str]) -> list[str]:
    """The classes whose state dicts have these keys."""
    return [
        kind
        for kind, wanted in KEYS.items()
        if wanted == keys or (kind == "AutoEncoderTopK" and wanted - OPTIONAL == keys)
    ]


def _configured(path: Path) -> str | None:
    if not path.is_file():
        return None
    return parse(Run, read_json(path), path).trainer.dict_class


def _kind(weights: Weights, file: Path, named: str | None) -> str:
    possible = _kinds(set(weights.tensors))
    if not possible:
        raise CheckpointError(
            f"{file} is no dictionary of {', '.join(KEYS)}: it holds {weights.names()}"
        )
    if named is None and len(possible) > 1:
        raise CheckpointError(
            f"{file} may be a {' or a '.join(possible)}: put its config.json beside it, or pass "
            "kind"
        )
    if named is not None and named not in possible:
        raise CheckpointError(
            f"{file} is said to be a {named}, but its tensors are those of a {possible[0]}"
        )
    return named or possible[0]


def _k(weights: Weights) -> int:
    return int(weights.take("k"))


def _linear(weights: Weights, kind: str) -> SAE:
    """Classes built from two Linear layers."""
    s, d = weights.shape("encoder.weight")
    W_enc, W_dec = weights.take("encoder.weight", s, d), weights.take("decoder.weight", d, s).T
    if kind == "GatedAutoEncoder":
        names = {"r_mag": "r_mag", "b_mag": "mag_bias"}
        extra = {ours: weights.take(theirs, s) for ours, theirs in names.items()}
        b_enc, b_dec = weights.take("gate_bias", s), weights.take("decoder_bias", d)
        return assemble(families.Gated(), W_enc, b_enc, W_dec, b_dec, extra=extra)
    b_enc = weights.take("encoder.bias", s)
    if kind.startswith("AutoEncoder") and kind != "AutoEncoderTopK":
        new = kind == "AutoEncoderNew"
        b_dec = weights.take("decoder.bias" if new else "bias", d)
        return assemble(families.ReLU(), W_enc, b_enc, W_dec, b_dec, centred=not new)
    b_dec = weights.take("b_dec", d)
    if kind == "AutoEncoderTopK":
        weights.ignore("threshold")
        return assemble(families.TopK(k=_k(weights)), W_enc, b_enc, W_dec, b_dec)
    return _batched(weights, W_enc, b_enc, W_dec, b_dec)


def _own(weights: Weights, kind: str) -> SAE:
    """Classes with parameters of their own."""
    d, s = weights.shape("W_enc")
    W_enc, W_dec = weights.take("W_enc", d, s).T, weights.take("W_dec", s, d)
    b_enc, b_dec = weights.take("b_enc", s), weights.take("b_dec", d)
    if kind == "JumpReluAutoEncoder":  # takes nothing off its input
        extra = {"thresholds": weights.take("threshold", s)}
        family = families.JumpReLU()
        return assemble(family, W_enc, b_enc, W_dec, b_dec, extra=extra, centred=False)
    sizes = weights.tensors.pop("group_sizes")
    if int(sizes.sum()) != s:
        raise CheckpointError(
            f"the group_sizes {sizes.tolist()} in {weights.source} do not add up to {s} latents"
        )
    shares = tuple((torch.cumsum(sizes, 0) / s).tolist())
    return _batched(weights, W_enc, b_enc, W_dec, b_dec, nest=Prefixes(shares=shares))


def _batched(
    weights: Weights, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, **options: Any
) -> SAE:
    extra = {"threshold": threshold_of(weights.take("threshold"), weights.source)}
    family = families.BatchTopK(k=_k(weights))
    return assemble(family, W_enc, b_enc, W_dec, b_dec, extra=extra, **options)
