"""Read SAEs of other libraries, and write the form of SAELens.

Every reader gives an SAE in evaluation mode whose codes and reconstructions are those of the
library that wrote it. Files are read strictly: a tensor of another shape, a tensor or setting too
many, or a kind that is not ours is refused with the reason, and no pickle is ever run.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vision_sae import checkpoint
from vision_sae.errors import CheckpointError, ConfigError, UnknownName
from vision_sae.interop import (
    dictionary_learning,
    gemma_scope,
    ksae,
    msae,
    openai,
    overcomplete,
    prisma,
    saelens,
    saev,
    sparsify,
)
from vision_sae.sae import SAE


class Format(NamedTuple):
    """A foreign format: how to tell it, how to read it, and what its files are."""

    claims: Callable[[Path], bool]
    read: Callable[..., SAE]
    files: str


FORMATS = {
    "vision_sae": Format(
        lambda path: (path / checkpoint.CONFIG).is_file() and (path / checkpoint.WEIGHTS).is_file(),
        checkpoint.load,
        "a folder of config.json and sae.safetensors",
    ),
    "saelens": Format(
        saelens.claims, saelens.read, "a folder of cfg.json and sae_weights.safetensors"
    ),
    "sparsify": Format(sparsify.claims, sparsify.read, "a folder of cfg.json and sae.safetensors"),
    "dictionary_learning": Format(
        dictionary_learning.claims, dictionary_learning.read, "ae.pt and its config.json"
    ),
    "overcomplete": Format(overcomplete.claims, overcomplete.read, "a state dict in a torch file"),
    "openai": Format(openai.claims, openai.read, "a state dict in a torch file"),
    "ksae": Format(ksae.claims, ksae.read, "a folder of config.json and state_dict.pth"),
    "gemma_scope": Format(gemma_scope.claims, gemma_scope.read, "params.npz or params.safetensors"),
    "saev": Format(saev.claims, saev.read, "a torch file behind a line of JSON"),
    "msae": Format(msae.claims, msae.read, "a torch file with a model, its data's mean and scale"),
    "prisma": Format(prisma.claims, prisma.read, "a folder of config.json and weights.pt"),
}

WRITTEN = ("saelens", "vision_sae")


def detect(path: Path | str) -> str:
    """The format of a file or folder. Raises CheckpointError when it is none, or unclear."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    found = [name for name, format in FORMATS.items() if format.claims(path)]
    if len(found) > 1:
        raise CheckpointError(f"{path} may be {' or '.join(found)}: name the format")
    if not found:
        raise CheckpointError(_nothing(path))
    return found[0]


def _nothing(path: Path) -> str:
    """Why there is no SAE to read at a path; its folders may hold some."""
    inside = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    held = [p.name for p in inside if any(format.claims(p) for format in FORMATS.values())]
    if held:
        return f"{path} is not an SAE itself, its folders are: {', '.join(held)}; name one"
    known = "; ".join(f"{name} ({format.files})" for name, format in FORMATS.items())
    return f"{path} holds no SAE in a format that is known here: {known}"


def load(path: Path | str, format: str = "auto", **settings: Any) -> SAE:
    """An SAE of any format. Settings are the reader's, for what the files do not say.

    Raises CheckpointError for files that cannot be read faithfully, UnknownName, ConfigError.
    """
    name = detect(path) if format == "auto" else format
    if name not in FORMATS:
        raise UnknownName("format", name, [*FORMATS, "auto"])
    reader = FORMATS[name].read
    allowed = list(inspect.signature(reader).parameters)[1:]
    unknown = sorted(set(settings) - set(allowed))
    if unknown:
        raise ConfigError(
            f"the {name} reader has no {', '.join(unknown)}; it has: {', '.join(allowed) or 'none'}"
        )
    return reader(Path(path), **settings)


def convert(
    source: Path | str,
    target: Path | str,
    from_: str = "auto",
    to: str = "saelens",
    *,
    overwrite: bool = False,
    **settings: Any,
) -> SAE:
    """Read one format, write another (saelens or vision_sae), and give the SAE.

    Raises as `load` and the writers do.
    """
    if to not in WRITTEN:
        raise UnknownName("format to write", to, WRITTEN)
    name = detect(source) if from_ == "auto" else from_
    sae = load(source, name, **settings)
    if to == "saelens":
        saelens.write(sae, target, overwrite=overwrite)
    else:
        checkpoint.save(sae, target, training={"converted_from": name}, overwrite=overwrite)
    return sae


__all__ = ["FORMATS", "Format", "convert", "detect", "load"]
