"""The state of an unfinished training on disk, so that a resumed run is the same bit for bit."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vision_sae import sharded
from vision_sae.errors import CheckpointError
from vision_sae.files import part, write_json, write_tensors

if TYPE_CHECKING:
    from vision_sae.train.trainer import Trainer

STATE, DESCRIPTION = "training.safetensors", "training.json"


def save_state(trainer: "Trainer", folder: Path) -> None:
    """Weights, moments, counters and the step in one safetensors file, the settings beside it.

    The file does not depend on the processes that train: any number of them can go on.
    """
    tensors = _whole(trainer, state_tensors(trainer))
    if trainer.group.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / DESCRIPTION, _describe(trainer))
        write_tensors(folder / STATE, tensors)


def _whole(trainer: "Trainer", tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the latents of all processes, for the first; the others need to keep nothing."""
    group, out = trainer.group.latents, {}
    for name, tensor in tensors.items():
        complete = sharded.gathered(tensor, group) if _per_latent(trainer, name) else tensor
        if group.rank == 0:
            out[name] = complete
    return out


def _own(trainer: "Trainer", tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the latents of this process only."""
    group = trainer.group.latents
    return {
        name: sharded.cut(tensor, group) if _per_latent(trainer, name) else tensor
        for name, tensor in tensors.items()
    }


def _per_latent(trainer: "Trainer", name: str) -> bool:
    """Whether a tensor of the state is cut up where processes share the latents."""
    if name == "since_fired":
        return trainer.group.latents.size > 1
    if name.startswith("adam."):
        _, number, what = name.split(".")
        names = [name for name, _ in trainer.sae.named_parameters()]
        return what != "step" and names[int(number)] in trainer.cut
    return name.removeprefix("best.").split(".", 1)[-1] in trainer.cut


def state_tensors(trainer: "Trainer") -> dict[str, Tensor]:
    """All that a step depends on, by name."""
    parts = {
        "sae": trainer.sae.state_dict(),
        "inputs": trainer.inputs.tensors(),
        "penalty": trainer.penalty_state,
        "average": trainer.average,
        "best": trainer.best.tensors(),
    }
    tensors = {f"{group}.{n}": t for group, named in parts.items() for n, t in named.items()}
    if trainer.sae.config.tied:
        del tensors["sae.W_dec"]  # it is W_enc
    tensors |= optimizer_tensors(trainer.optimizer)
    tensors["since_fired"] = trainer.since_fired
    tensors["step"] = torch.tensor(trainer.step)
    return tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and steps, named adam.<number of the parameter>.<what>."""
    state = optimizer.state_dict()["state"]
    return {f"adam.{i}.{name}": t for i, moments in state.items() for name, t in moments.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; other tensors are left aside."""
    whole = optimizer.state_dict()
    for name, tensor in part(tensors, "adam.").items():
        number, key = name.split(".")
        whole["state"].setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict(whole)


def _describe(trainer: "Trainer") -> dict[str, Any]:
    provenance = trainer.whole.provenance
    described = {
        "sae": trainer.whole.config.model_dump(),
        "train": trainer.config.model_dump(),
        "provenance": provenance.model_dump() if provenance else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(described))  # tuples are lists in the file
    return plain


def load_state(trainer: "Trainer", folder: Path) -> None:
    """Go on where `save_state` left off. Raises CheckpointError when the settings are others."""
    _check_settings(trainer, folder)
    try:
        state = load_file(folder / STATE)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / STATE}: {error}; pass --overwrite") from error
    state = _own(trainer, state)
    trainer.sae.load_state_dict(part(state, "sae."), strict=not trainer.sae.config.tied)
    restore_optimizer(trainer.optimizer, state)
    for mine, theirs in (
        (trainer.penalty_state, part(state, "penalty.")),
        (trainer.average, part(state, "average.")),
    ):
        for name, tensor in mine.items():
            tensor.copy_(theirs[name])
    for name, tensor in part(state, "inputs.").items():
        setattr(trainer.inputs, name, tensor)
    trainer.best.load(part(state, "best."))
    trainer.since_fired.copy_(state["since_fired"])
    trainer.step = int(state["step"])


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
