"""Names as a file beside their SAE."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vision_sae.errors import DataError
from vision_sae.files import write_json
from vision_sae.naming.names import Name, Naming

NAMES = "names.json"


def read_naming(sae: Path | str) -> Naming:
    """What `vision-sae name` saved beside an SAE; without names when there is nothing.

    Raises DataError for a file of another form.
    """
    path = beside(Path(sae)) / NAMES
    if not path.exists():
        return Naming([], {})
    try:
        found = json.loads(path.read_text("utf-8"))
        return Naming([Name(**row) for row in found["names"]], found["how"])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} holds no names ({error}); run `vision-sae name` again") from error


def read_names(sae: Path | str) -> dict[int, Name]:
    """The saved names of an SAE, by latent; empty when it has none. Raises as `read_naming`."""
    return {name.latent: name for name in read_naming(sae).names}


def write_naming(sae: Path | str, naming: Naming) -> Path:
    """Write the names beside their SAE; returns the file."""
    path = beside(Path(sae)) / NAMES
    write_json(path, naming_as_data(naming))
    return path


def naming_as_data(naming: Naming) -> dict[str, Any]:
    """{"how": ..., "names": a row per latent}, as names.json holds it."""
    return asdict(naming)


def beside(sae: Path) -> Path:
    """The folder of an SAE, which in other libraries may be a file."""
    return sae.parent if sae.is_file() else sae
