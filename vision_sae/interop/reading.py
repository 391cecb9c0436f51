"""What the readers share: strict access to foreign files, and the way from tensors to an SAE."""

import io
import json
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vision_sae.config import plain_error
from vision_sae.errors import CheckpointError
from vision_sae.families import Family
from vision_sae.sae import SAE, SAEConfig

Config = TypeVar("Config", bound=BaseModel)
UNIT = 1e-3  # atoms whose norms are all this near to 1 count as unit atoms


class Loose(BaseModel):
    """The part of a foreign config that matters; what else is there is about training."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass
class Weights:
    """Tensors of one file; each is taken once, and none may be left over."""

    tensors: dict[str, Tensor]
    source: Path

    def take(self, name: str, *shape: int) -> Tensor:
        """One tensor, in float32. Raises CheckpointError when it is missing or of another shape."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.source} lacks {name}; it holds {self.names()}")
        found = self.tensors.pop(name)
        if tuple(found.shape) != shape:
            raise CheckpointError(
                f"{name} in {self.source} has shape {tuple(found.shape)}; {shape} was expected"
            )
        return found.detach().float()

    def shape(self, name: str, axes: int = 2) -> tuple[int, ...]:
        """The shape of a tensor that stays. Raises CheckpointError when there is none."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.source} lacks {name}; it holds {self.names()}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != axes:
            raise CheckpointError(f"{name} in {self.source} has shape {shape}; {axes} axes needed")
        return shape

    def ignore(self, *names: str) -> None:
        """Let these go unread: counters and buffers that do not change what the SAE does."""
        for name in names:
            self.tensors.pop(name, None)

    def names(self) -> str:
        return ", ".join(sorted(self.tensors)) or "nothing"

    def finish(self, kind: str) -> None:
        """Raises CheckpointError when a tensor was not read: it may be of another kind of SAE."""
        if self.tensors:
            raise CheckpointError(
                f"{self.source} holds tensors that {kind} does not have: {self.names()}"
            )


def read_tensors(path: Path) -> Weights:
    """A safetensors file. Raises CheckpointError."""
    try:
        return Weights(load_file(path), path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; a JSON object was expected")
    return found


def parse(model: type[Config], found: Any, source: Path) -> Config:
    """A foreign config as a model of ours. Raises CheckpointError that names the field."""
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise CheckpointError(
            f"{source} does not hold what it should: {plain_error(error)}"
        ) from None


def unpickle(path: Path, data: bytes | None = None) -> dict[str, Any]:
    """A dictionary saved by torch, read without running code. Raises CheckpointError."""
    source: Any = path if data is None else io.BytesIO(data)
    mapped = data is None and _starts(path) == b"PK"  # then tensors are read as they are used
    try:
        found = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except (OSError, EOFError, KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read by torch.load: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; a state dict was expected")
    return dict(found)


def _refusal(path: Path, error: str) -> str:
    names = re.search(r"GLOBAL ([\w.]+)", error)
    what = f" ({names[1]})" if names else ""
    return (
        f"{path} is a pickle of more than tensors and plain values{what}, and reading it could run "
        "any code: load it with its own library and save its state_dict() instead"
    )


def saved_by_torch(path: Path) -> dict[str, Any]:
    """What a torch file holds, for detection; empty for any other file or a folder."""
    start = _starts(path) if path.is_file() else b""
    if start == b"\x80\x02" or (start == b"PK" and _of_torch(path)):
        return unpickle(path)
    return {}


def _starts(path: Path) -> bytes:
    """The first two bytes of a file. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            return file.read(2)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _of_torch(path: Path) -> bool:
    """Whether a zip archive is torch's (npz files are such archives, too)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is broken: {error}") from error


def tensors_of(state: Any, path: Path) -> Weights:
    """The tensors of a state dict. Raises CheckpointError when it holds anything else."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}; a state dict was expected")
    other = sorted(name for name, value in state.items() if not isinstance(value, Tensor))
    if other:
        raise CheckpointError(f"{path} holds more than tensors: {', '.join(other)}")
    return Weights(dict(state), path)


def threshold_of(value: Tensor, source: Path) -> Tensor:
    """A BatchTopK threshold. Raises CheckpointError while it is unset."""
    if not value > 0:
        raise CheckpointError(
            f"the BatchTopK threshold in {source} is {value.item():g}, which means that it was "
            "never set: every positive latent would be active; train on, or store a threshold"
        )
    return value


def assemble(
    family: Family,
    W_enc: Float[Tensor, "s d"],
    b_enc: Float[Tensor, " s"],
    W_dec: Float[Tensor, "s o"],
    b_dec: Float[Tensor, " o"],
    *,
    extra: dict[str, Tensor] | None = None,
    **options: Any,
) -> SAE:
    """An SAE in evaluation mode; options are SAEConfig's. Raises CheckpointError."""
    s, d = W_enc.shape
    norms = W_dec.norm(dim=1)
    atoms = "unit" if bool((norms - 1).abs().max() < UNIT) else "free"
    try:
        sae = SAE(SAEConfig(d=d, s=s, sparsity=family, **({"atoms": atoms} | options)))
    except ValidationError as error:
        raise CheckpointError(f"no such SAE can be built: {plain_error(error)}") from None
    parts = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec} | (extra or {})
    with torch.no_grad():
        for name, value in parts.items():
            getattr(sae, name).copy_(value)
    return sae.eval()
