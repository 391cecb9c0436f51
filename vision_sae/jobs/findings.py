"""Names and detections as files beside an SAE, and what they sum up to."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vision_sae.files import write_json
from vision_sae.measures.factors import Detection
from vision_sae.naming import UNNAMED, Name, Naming, naming_as_data, read_naming, write_naming
from vision_sae.naming.saved import beside

DETECTIONS = "detections.json"


def summary_of(names: Sequence[Name], detections: Sequence[Detection]) -> dict[str, float]:
    """The numbers that say how interpretable the latents are; shares are of live latents.

    "of those tested" is of latents that fire on enough held-out images, "of those judged" of those
    whose name enough images are labelled with.
    """
    live = len(names)
    if not live:
        return {"live latents": 0, "median name score": 0.0}
    scores = sorted(n.score for n in names)
    found = {"live latents": live, "median name score": scores[live // 2]}
    found |= names_that_hold(names)
    if detections:
        found["share with F1 of 0.5 or more"] = share_detecting(detections, live)
        found["share with AUROC of 0.8 or more"] = sum(d.auroc >= 0.8 for d in detections) / live
    return found


def names_that_hold(names: Sequence[Name]) -> dict[str, float]:
    """How many latents have names, and how many of the names do as they say."""
    named = [n for n in names if n.name != UNNAMED]
    tested = [n for n in names if n.auroc is not None]
    if not names:
        return {}
    found = {"share with a name": len(named) / len(names)}
    if tested:
        detecting = sum(n.detects for n in tested)
        found["share tested on held-out images"] = len(tested) / len(names)
        found["names that detect (AUROC of 0.8 or more)"] = detecting / len(names)
        found["names that detect, of those tested"] = detecting / len(tested)
    judged = [n.verdict for n in named if n.verdict is not None]
    if judged:
        found["names known right, of those judged"] = judged.count("right") / len(judged)
        found["names known to say a part, of those judged"] = judged.count("narrow") / len(judged)
    return found


def findings_as_data(naming: Naming, detections: Sequence[Detection]) -> dict[str, Any]:
    """{"how": ..., "names": [...], "detections": [...]}"""
    return naming_as_data(naming) | {"detections": [asdict(d) for d in detections]}


def share_detecting(found: Sequence[Detection], live: int, f1: float = 0.5) -> float:
    """The share of live latents whose F1 for some factor is at least this."""
    return sum(d.f1 >= f1 for d in found) / max(1, live)


def save_findings(folder: Path | str, naming: Naming, detections: Sequence[Detection] = ()) -> None:
    """Write names and detections beside the SAE, for the report and for others to read."""
    write_naming(folder, naming)
    write_json(beside(Path(folder)) / DETECTIONS, [asdict(d) for d in detections])


def read_findings(folder: Path) -> tuple[Naming, list[Detection]]:
    """What `save_findings` wrote; empty where there is nothing."""
    rows = _rows_of(beside(folder) / DETECTIONS)
    return read_naming(folder), [Detection(**row) for row in rows]


def _rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return rows
