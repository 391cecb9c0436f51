"""Names and detections as files beside an SAE, and what they sum up to."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vision_sae.files import write_json
from vision_sae.measures.factors import Detection
from vision_sae.naming import Name

NAMES, DETECTIONS = "names.json", "detections.json"


def summary_of(names: list[Name], detections: list[Detection]) -> dict[str, float]:
    """The numbers that say how interpretable the latents are."""
    live = len(names)
    scores = sorted(n.score for n in names)
    found = {"live latents": live, "median name score": scores[live // 2] if live else 0.0}
    if detections:
        found["share with F1 of 0.5 or more"] = share_detecting(detections, live)
        found["share with AUROC of 0.8 or more"] = sum(d.auroc >= 0.8 for d in detections) / live
    return found


def findings_as_data(
    names: list[Name], detections: list[Detection]
) -> dict[str, list[dict[str, Any]]]:
    return {"names": [asdict(n) for n in names], "detections": [asdict(d) for d in detections]}


def share_detecting(found: list[Detection], live: int, f1: float = 0.5) -> float:
    """The share of live latents whose F1 for some factor is at least this."""
    return sum(d.f1 >= f1 for d in found) / max(1, live)


def save_findings(folder: Path | str, names: list[Name], detections: list[Detection]) -> None:
    """Write names and detections beside the SAE, for the report and for others to read."""
    found, folder = findings_as_data(names, detections), _beside(Path(folder))
    write_json(folder / NAMES, found["names"])
    write_json(folder / DETECTIONS, found["detections"])


def read_findings(folder: Path) -> tuple[list[Name], list[Detection]]:
    """What `save_findings` wrote; empty lists where there is nothing."""
    folder = _beside(folder)
    return (
        [Name(**row) for row in _rows_of(folder / NAMES)],
        [Detection(**row) for row in _rows_of(folder / DETECTIONS)],
    )


def _beside(sae: Path) -> Path:
    """The folder of an SAE, which in other libraries may be a file."""
    return sae.parent if sae.is_file() else sae


def _rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return rows
