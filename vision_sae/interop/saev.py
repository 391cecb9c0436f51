"""saev (OSU-NLP-Group): one line of JSON, then a state dict saved by torch. Schemas 2 to 5."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from vision_sae import families
from vision_sae.errors import CheckpointError
from vision_sae.families import Family
from vision_sae.interop.reading import (
    Loose,
    Weights,
    assemble,
    parse,
    tensors_of,
    threshold_of,
    unpickle,
)
from vision_sae.sae import SAE

SCHEMAS = range(2, 6)
THRESHOLD = "activation.threshold"


class Params(Loose):
    top_k: int = Field(32, ge=1)


class Activation(Loose):
    cls: Literal["Relu", "TopK", "BatchTopK"]
    params: Params = Params()


class Settings(Loose):
    activation: Activation


class Header(Loose):
    """The first line."""

    cfg: Settings


def claims(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == b"{" and b'"cfg"' in file.readline(1 << 20)


def read(path: Path) -> SAE:
    """A ReLU, TopK or BatchTopK SAE. b_dec is not taken off its input.

    Codes are saev's own, except where a top-k row has fewer than k positive pre-activations: saev
    keeps the negative ones, this does not.
    """
    header, _, data = path.read_bytes().partition(b"\n")
    activation = _activation(header, path)
    weights = tensors_of(unpickle(path, data), path)
    d, s = weights.shape("W_enc")
    W_enc, W_dec = weights.take("W_enc", d, s).T, weights.take("W_dec", s, d)
    b_enc, b_dec = weights.take("b_enc", s), weights.take("b_dec", d)
    family = _family(activation)
    extra = {"threshold": _threshold(weights)} if family.kind == "batchtopk" else {}
    weights.finish(f"a saev SAE with {activation.cls}")
    return assemble(family, W_enc, b_enc, W_dec, b_dec, extra=extra, centred=False)


def _activation(line: bytes, path: Path) -> Activation:
    try:
        found = json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the first line of {path} is not JSON: {error}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema not in SCHEMAS:
        raise CheckpointError(
            f"{path} has saev's schema {schema}; this version reads 2 to 5 (before, b_dec was "
            "taken off the input in some versions and not in others, and the file does not say)"
        )
    return parse(Header, found, path).cfg.activation


def _family(activation: Activation) -> Family:
    k = activation.params.top_k
    if activation.cls == "Relu":
        return families.ReLU()
    return families.TopK(k=k) if activation.cls == "TopK" else families.BatchTopK(k=k)


def _threshold(weights: Weights) -> Tensor:
    return threshold_of(weights.take(THRESHOLD), weights.source)
