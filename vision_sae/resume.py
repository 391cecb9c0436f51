"""The state of an unfinished training on disk, so that a resumed run is the same bit for bit."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vision_sae.errors import CheckpointError
from vision_sae.files import part, write_json, write_tensors

if TYPE_CHECKING:
    from vision_sae.train import Trainer

STATE, DESCRIPTION = "training.safetensors", "training.json"


def save_state(trainer: "Trainer", folder: Path) -> None:
    """Weights, moments, counters and the step in one safetensors file, the settings beside it."""
    tensors = {f"sae.{name}": t for name, t in trainer.sae.state_dict().items()}
    for i, moments in trainer.adam.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{name}": t for name, t in moments.items()}
    tensors["since_fired"] = trainer.since_fired
    tensors["step"] = torch.tensor(trainer.step)
    tensors["scale"] = torch.tensor(trainer.scale, dtype=torch.float64)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / DESCRIPTION, _describe(trainer))
    write_tensors(folder / STATE, tensors)


def _describe(trainer: "Trainer") -> dict[str, Any]:
    provenance = trainer.sae.provenance
    return {
        "sae": trainer.sae.config.model_dump(),
        "train": trainer.config.model_dump(),
        "provenance": provenance.model_dump() if provenance else None,
    }


def load_state(trainer: "Trainer", folder: Path) -> None:
    """Go on where `save_state` left off. Raises CheckpointError when the settings are others."""
    _check_settings(trainer, folder)
    try:
        state = load_file(folder / STATE)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / STATE}: {error}; pass --overwrite") from error
    trainer.sae.load_state_dict(part(state, "sae."))
    adam = trainer.adam.state_dict()
    for name, tensor in part(state, "adam.").items():
        number, key = name.split(".")
        adam["state"].setdefault(int(number), {})[key] = tensor
    trainer.adam.load_state_dict(adam)
    trainer.since_fired.copy_(state["since_fired"])
    trainer.step, trainer.scale = int(state["step"]), float(state["scale"])


def _check_settings(trainer: "Trainer", folder: Path) -> None:
    saved, wanted = json.loads((folder / DESCRIPTION).read_text()), _describe(trainer)
    differ = [key for key, value in wanted.items() if saved.get(key) != value]
    if differ:
        raise CheckpointError(
            f"{folder} holds an unfinished training with other settings ({', '.join(differ)}); "
            "finish it with the same command, or pass --overwrite"
        )


def forget(folder: Path) -> None:
    """Remove the state of a run: it is done, or to be done anew."""
    for name in (STATE, DESCRIPTION):  # in this order: a state without its description misleads
        (folder / name).unlink(missing_ok=True)
