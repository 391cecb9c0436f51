"""Pipelines of diffusers by name, with settings: safetensors only, and no code from a folder."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vision_sae.adapters.loading import FAILURES, first_line
from vision_sae.data.options import split_options
from vision_sae.errors import ConfigError, DataError, require
from vision_sae.store.index import DTYPES

Parse = Callable[[str], Any]  # the text of a setting to its value; ValueError


def numbers(text: str) -> tuple[int, ...]:
    """`25,200`"""
    return tuple(int(part) for part in text.split(","))


def dtype_of(text: str) -> torch.dtype:
    if text not in DTYPES:
        raise ValueError
    return DTYPES[text]


def settings_of(argument: str, allowed: Mapping[str, Parse]) -> tuple[str, dict[str, Any]]:
    """`FOLDER?name=value&...` as the folder and the parsed settings.

    Raises ConfigError for a missing folder, an unknown name (it lists them) or a bad value.
    """
    folder, texts = split_options(argument)
    if not folder:
        raise ConfigError("diffusers needs a pipeline's folder or hub name after the colon")
    settings = {}
    for name, text in texts.items():
        if name not in allowed:
            raise ConfigError(f"no setting {name!r} of a pipeline; there are: {', '.join(allowed)}")
        try:
            settings[name] = allowed[name](text)
        except ValueError as error:
            raise ConfigError(f"the setting {name}={text} cannot be read{_wanted(name)}") from error
    return folder, settings


def _wanted(name: str) -> str:
    wanted = {
        "dtype": ", ".join(DTYPES),
        "at": "whole numbers, as 0,10,20",
        "timesteps": "whole numbers, as 25,200",
    }
    return f"; it takes {wanted.get(name, 'a number')}"


def load_pipeline(folder: str, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline from a local folder or the hub.

    Raises DataError for what holds no pipeline, holds its own code, or has no safetensors weights.
    """
    diffusers = require("diffusers", "diffusion")
    require("transformers", "diffusion")
    if Path(folder).is_dir():
        _check_folder(Path(folder))
    try:
        with warnings.catch_warnings(), _quiet():
            # `torch_dtype` is the only name in diffusers 0.30; later ones warn of it
            warnings.simplefilter("ignore", FutureWarning)
            return diffusers.DiffusionPipeline.from_pretrained(
                folder, torch_dtype=dtype, use_safetensors=True, trust_remote_code=False,
                low_cpu_mem_usage=find_spec("accelerate") is not None,
            )  # fmt: skip
    except (*FAILURES, AttributeError) as error:
        raise DataError(f"diffusers could not load {folder}: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars of the libraries' own while they load."""
    parts = [
        require(f"{name}.utils.logging", "diffusion") for name in ("diffusers", "transformers")
    ]
    shown = [part for part in parts if part.is_progress_bar_enabled()]
    for part in shown:
        part.disable_progress_bar()
    try:
        yield
    finally:
        for part in shown:
            part.enable_progress_bar()


def _check_folder(folder: Path) -> None:
    """diffusers would import a .py file that stands beside the weights."""
    if not (folder / "model_index.json").is_file():
        raise DataError(f"{folder} holds no pipeline: it has no model_index.json")
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except ValueError as error:
        raise DataError(f"model_index.json in {folder} is not JSON: {error}") from error
    code = sorted(p.name for p in folder.rglob("*.py"))
    if code or not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise DataError(
            f"{folder} wants its own code to be run ({', '.join(code) or 'custom pipeline class'}),"
            " which is not done; load the pipeline yourself and wrap it (TrajectoryAdapter)"
        )
