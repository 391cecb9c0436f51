"""What can go wrong, by what the caller can do about it.

VisionSAEError
├── ConfigError (ValueError)         a setting is out of range
├── UnknownName (LookupError)        no such model, site, data set, split, latent
├── MissingExtra (ImportError)       an optional library is not installed
├── DataError (ValueError)           images, vocabularies or activations that cannot be used
├── StoreError                       an activation store is unfinished, broken or of another kind
├── CheckpointError                  a saved SAE is broken or of another kind
├── MismatchError (ValueError)       an SAE, a store and a model that do not belong together
└── OutputExists (FileExistsError)   the output folder already holds something else
"""

import importlib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # ends the names of files that are being written


class VisionSAEError(Exception):
    """Every error that this library raises on purpose."""


class ConfigError(VisionSAEError, ValueError):
    pass


class UnknownName(VisionSAEError, LookupError):
    """A name that is not there; the message lists near ones, or all when they are few."""

    def __init__(self, kind: str, name: str, allowed: Iterable[str]) -> None:
        super().__init__(f"no {kind} {name!r}; {_suggest(name, sorted(allowed))}")


class MissingExtra(VisionSAEError, ImportError):
    pass


class DataError(VisionSAEError, ValueError):
    pass


class StoreError(VisionSAEError):
    pass


class CheckpointError(VisionSAEError):
    pass


class MismatchError(VisionSAEError, ValueError):
    pass


class OutputExists(VisionSAEError, FileExistsError):
    pass


def _suggest(name: str, allowed: list[str], few: int = 12) -> str:
    near = get_close_matches(name, allowed, n=5, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    listed = ", ".join(allowed[:few]) + (
        f" and {len(allowed) - few} more" if len(allowed) > few else ""
    )
    return f"there are: {listed or 'none'}"


def require(module: str, extra: str) -> Any:
    """Import an optional library, or raise MissingExtra that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"this needs {error.name or module}, which is not installed: "
            f"pip install 'vision-sae[{extra}]'"
        ) from error


def claim_folder(folder: Path, *markers: str, overwrite: bool = False) -> Path:
    """Make an output folder, or accept an empty one or one of our own kind (it holds a marker).

    Raises OutputExists when it holds anything else and `overwrite` is false, ConfigError when it
    cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExists(f"{folder} is a file; an output folder is needed")
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    held = [name for name in names if not name.endswith(PARTIAL)]  # of a run that was killed
    if held and not set(markers) & set(held) and not overwrite:
        raise OutputExists(
            f"{folder} already holds something else ({', '.join(held[:3])}); "
            "choose another folder or pass --overwrite"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from error
    return folder


def claim_new(folder: Path, marker: str, what: str, *, overwrite: bool = False) -> Path:
    """As claim_folder, for what is never continued: a folder with the marker is taken too."""
    claim_folder(folder, marker, overwrite=overwrite)
    if (folder / marker).exists() and not overwrite:
        raise OutputExists(f"{folder} holds {what}; choose another folder or pass --overwrite")
    return folder
