"""Names and detections as files beside an SAE, and what they sum up to."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vision_sae.files import write_json
from vision_sae.measures.factors import Detection
from vision_sae.naming import Name, names_as_data, read_names, write_names
from vision_sae.naming.saved import beside

DETECTIONS = "detections.json"


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
    return {"names": names_as_data(names), "detections": [asdict(d) for d in detections]}


def share_detecting(found: list[Detection], live: int, f1: float = 0.5) -> float:
    """The share of live latents whose F1 for some factor is at least this."""
    return sum(d.f1 >= f1 for d in found) / max(1, live)


def save_findings(folder: Path | str, names: list[Name], detections: list[Detection]) -> None:
    """Write names and detections beside the SAE, for the report and for others to read."""
    write_names(folder, names)
    write_json(beside(Path(folder)) / DETECTIONS, [asdict(d) for d in detections])


def read_findings(folder: Path) -> tuple[list[Name], list[Detection]]:
    """What `save_findings` wrote; empty lists where there is nothing."""
    rows = _rows_of(beside(folder) / DETECTIONS)
    return list(read_names(folder).values()), [Detection(**row) for row in rows]


def _rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return rows
