"""A report's files: JSON as scripts, as fetch does not work on file://; written whole or not."""

import json
import math
import numbers
from pathlib import Path
from typing import Any

from vision_sae.files import write_bytes


def write_script(path: Path, value: Any) -> Path:
    """A script that assigns `value` to vsae["<stem of path>"]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, f'vsae["{path.stem}"] = {to_json(value)};\n'.encode())
    return path


def to_json(value: Any) -> str:
    """JSON that may stand in a script tag; NaN and infinities become null."""
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # in JSON a < stands in strings only


def _plain(value: Any) -> Any:
    """Python's own types, floats to six digits: what a screen can show, at half the bytes."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def remove_stale(folder: Path, pattern: str, keep: set[Path]) -> None:
    """Delete what a larger earlier report left in `folder` under our own file names."""
    for path in folder.glob(pattern):
        if path not in keep:
            path.unlink()
