"""Read an SAE, whoever wrote it."""

from pathlib import Path
from typing import Any

from vision_sae import checkpoint, interop
from vision_sae.errors import CheckpointError
from vision_sae.sae import SAE


def load_sae(path: Path | str) -> SAE:
    """An SAE of ours or of another library, in evaluation mode. Raises CheckpointError."""
    return interop.load(path)


def record_of(path: Path | str) -> dict[str, Any]:
    """How an SAE was trained; empty for one of another library."""
    try:
        return checkpoint.read_config(Path(path)).training
    except CheckpointError:
        return {}
