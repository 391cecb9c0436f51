"""Save and load an SAE: a folder of `config.json` and `sae.safetensors`, never a pickle."""

from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vision_sae.config import Versioned, read_settings
from vision_sae.errors import CheckpointError, claim_folder
from vision_sae.files import write_json, write_tensors
from vision_sae.provenance import Provenance
from vision_sae.sae import SAE, SAEConfig

CONFIG, WEIGHTS = "config.json", "sae.safetensors"


class Saved(Versioned):
    """What config.json holds. `training` is a record of how it was made, not read back."""

    sae: SAEConfig
    provenance: Provenance | None = None
    training: dict[str, Any] = {}


def save(
    sae: SAE, folder: Path | str, *, training: dict[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Write an SAE. Raises OutputExists when the folder holds anything already."""
    folder = claim_folder(Path(folder), overwrite=overwrite)
    write_tensors(folder / WEIGHTS, _own_tensors(sae))
    saved = Saved(sae=sae.config, provenance=sae.provenance, training=training or {})
    write_json(folder / CONFIG, saved.model_dump())  # last: a folder with a config is whole


def _own_tensors(sae: SAE) -> dict[str, Tensor]:
    """The state dict; a tied decoder is its encoder and is left out."""
    state = sae.state_dict()
    if sae.config.tied:
        del state["W_dec"]
    return state


def load(folder: Path | str, *, threshold: Literal["calibrated", "running"] = "calibrated") -> SAE:
    """Read an SAE, in evaluation mode; `threshold` is the one that a BatchTopK SAE shall use.

    Raises CheckpointError for what is not one of ours.
    """
    folder = Path(folder)
    saved = read_config(folder)
    sae = SAE(saved.sae)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    wanted = {name: tuple(t.shape) for name, t in _own_tensors(sae).items()}
    found = {name: tuple(t.shape) for name, t in state.items()}
    if wanted != found:
        differ = sorted(set(wanted.items()) ^ set(found.items()))
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its config: {differ}")
    sae.load_state_dict(state, strict=not sae.config.tied)
    sae.provenance, sae.threshold_choice = saved.provenance, threshold
    return sae.eval()


def read_config(folder: Path) -> Saved:
    """The config alone. Raises CheckpointError."""
    path = folder / CONFIG
    if not path.exists():
        raise CheckpointError(f"{folder} holds no SAE: it has no {CONFIG}")
    return read_settings(Saved, path, CheckpointError)
