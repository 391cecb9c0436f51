"""A bottleneck on disk: bottleneck.json and head.safetensors, never a pickle."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file

from vision_sae.config import Versioned, read_settings
from vision_sae.errors import CheckpointError, claim_new
from vision_sae.files import write_json, write_tensors
from vision_sae.recipes.bottleneck.choice import Point
from vision_sae.recipes.bottleneck.concepts import Part
from vision_sae.recipes.bottleneck.estimator import Bottleneck
from vision_sae.recipes.bottleneck.head import Head

DESCRIPTION, WEIGHTS = "bottleneck.json", "head.safetensors"


class Saved(Versioned):
    """What bottleneck.json holds; `about` is a record of how it was made."""

    settings: dict[str, Any]
    classes: list[Any]
    several: bool
    temperature: float
    parts: list[Part]
    names: dict[int, str]
    removed: list[int]
    path: list[dict[str, Any]]
    chosen: int
    validation: dict[str, float]
    about: dict[str, Any] = {}


def save(cbm: Bottleneck, folder: Path | str, *, overwrite: bool = False) -> None:
    """Write a fitted bottleneck. Raises OutputExists where there is one or something else."""
    folder = claim_new(Path(folder), DESCRIPTION, "a bottleneck", overwrite=overwrite)
    head, W = cbm.head_, cbm.head_.W.tocoo()
    write_tensors(
        folder / WEIGHTS,
        {
            "class": torch.from_numpy(W.row.astype(np.int64)),
            "concept": torch.from_numpy(W.col.astype(np.int64)),
            "weight": torch.from_numpy(W.data.astype(np.float64)),
            "intercept": torch.from_numpy(np.array(head.b)),
            "mean": torch.from_numpy(np.array(head.m)),
        },
    )
    saved = Saved(
        settings=cbm.get_params(),
        classes=head.classes,
        several=head.several,
        temperature=head.temperature,
        parts=list(cbm.parts_),
        names=cbm.names_,
        removed=cbm.removed_,
        path=[_finite(p.as_dict()) for p in cbm.path_],
        chosen=cbm.chosen_,
        validation=cbm.validation_,
        about=cbm.about_,
    )
    write_json(folder / DESCRIPTION, saved.model_dump(mode="json"))  # last: then it is whole


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in row.items()
    }


def load(folder: Path | str) -> Bottleneck:
    """Raises CheckpointError for what is no bottleneck."""
    from scipy.sparse import csr_array

    folder = Path(folder)
    if not (folder / DESCRIPTION).exists():
        raise CheckpointError(f"{folder} holds no bottleneck: it has no {DESCRIPTION}")
    saved = read_settings(Saved, folder / DESCRIPTION, CheckpointError)
    try:
        state = {name: t.numpy() for name, t in load_file(folder / WEIGHTS).items()}
        shape = (len(saved.classes), len(state["mean"]))
        entries = (state["weight"], (state["class"], state["concept"]))
        W = csr_array(entries, shape=shape)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    cbm = Bottleneck(**saved.settings)
    cbm.head_ = Head(
        saved.classes, W, state["intercept"], state["mean"], saved.several, saved.temperature
    )
    nan = float("nan")
    rows = [{n: nan if v is None else v for n, v in row.items()} for row in saved.path]
    cbm.path_ = TypeAdapter(list[Point]).validate_python(rows)
    cbm.chosen_, cbm.validation_ = saved.chosen, saved.validation
    cbm.parts_, cbm.names_ = tuple(saved.parts), saved.names
    cbm.removed_, cbm.about_ = saved.removed, saved.about
    return cbm
