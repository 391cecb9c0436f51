"""Gemma Scope: `params.npz`, or `params.safetensors` in its second release.

JumpReLU, nothing is taken off the input; a skip transcoder has an affine_skip_connection.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch

from vision_sae import families
from vision_sae.errors import CheckpointError
from vision_sae.interop.reading import Weights, assemble, read_tensors
from vision_sae.sae import SAE

NAMES = ("params.npz", "params.safetensors")
SKIP = "affine_skip_connection"  # [d_in d_out]


def claims(path: Path) -> bool:
    return path.suffix == ".npz" or _file(path).name in NAMES and _file(path).is_file()


def read(path: Path) -> SAE:
    """A JumpReLU SAE or transcoder; codes are its own."""
    weights = _weights(_file(path))
    d, s = weights.shape("w_enc")
    _, o = weights.shape("w_dec")
    W_enc, W_dec = weights.take("w_enc", d, s).T, weights.take("w_dec", s, o)
    b_enc, b_dec = weights.take("b_enc", s), weights.take("b_dec", o)
    extra = {"thresholds": weights.take("threshold", s)}
    skip = SKIP in weights.tensors
    if skip:
        extra["W_skip"] = weights.take(SKIP, d, o).T
    weights.finish("Gemma Scope")
    options = {"centred": False, "skip": skip, "d_out": o if skip or o != d else None}
    return assemble(families.JumpReLU(), W_enc, b_enc, W_dec, b_dec, extra=extra, **options)


def _file(path: Path) -> Path:
    found = [path / name for name in NAMES if (path / name).is_file()]
    return found[0] if found else path


def _weights(file: Path) -> Weights:
    """By lower-case names: releases differ in their case."""
    if file.suffix == ".safetensors":
        found = read_tensors(file).tensors
    else:
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{file} cannot be read as npz: {error}") from error
    return Weights({name.lower(): value for name, value in found.items()}, file)
