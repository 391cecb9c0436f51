"""Names as a file beside their SAE."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vision_sae.errors import DataError
from vision_sae.files import write_json
from vision_sae.naming.names import Name

NAMES = "names.json"


def read_names(sae: Path | str) -> dict[int, Name]:
    """The saved names of an SAE, by latent; empty when it has none.

    Raises DataError for a file of another form.
    """
    path = beside(Path(sae)) / NAMES
    if not path.exists():
        return {}
    try:
        names = [Name(**row) for row in json.loads(path.read_text("utf-8"))]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} holds no names: {error}; run `vision-sae name` again") from error
    return {name.latent: name for name in names}


def write_names(sae: Path | str, names: list[Name]) -> Path:
    """Write the names beside their SAE; returns the file."""
    path = beside(Path(sae)) / NAMES
    write_json(path, names_as_data(names))
    return path


def names_as_data(names: list[Name]) -> list[dict[str, Any]]:
    return [asdict(name) for name in names]


def beside(sae: Path) -> Path:
    """The folder of an SAE, which in other libraries may be a file."""
    return sae.parent if sae.is_file() else sae
