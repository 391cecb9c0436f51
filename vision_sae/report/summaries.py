"""What the overview's plots show, binned and thinned here so that the page stays light."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CURVES = ("loss", "fvu", "l0", "dead", "dead_share")  # columns of metrics.jsonl that are drawn


def firing(frequencies: Sequence[float], per_decade: int = 5) -> dict[str, Any]:
    """Histogram of log10 frequency of the latents that fire; the others are counted as dead."""
    values = _finite(frequencies)
    logs = np.log10(values[values > 0])
    dead = len(values) - len(logs)
    if not len(logs):
        return {"edges": [], "counts": [], "dead": dead, "total": len(values), "median": None}
    low = math.floor(logs.min() * per_decade)
    high = max(math.ceil(logs.max() * per_decade), low + 1)
    edges = np.arange(low, high + 1) / per_decade
    counts = np.histogram(np.clip(logs, edges[0], edges[-1]), edges)[0]
    median = float(10 ** np.median(logs))
    return _binned(edges, counts) | {"dead": dead, "total": len(values), "median": median}


def image_errors(fvu: Sequence[float], bins: int = 40) -> dict[str, Any]:
    """Histogram of per-image FVU from 0; the worst half per cent may lie beyond the last edge."""
    values = _finite(fvu)
    if not len(values):
        return {"edges": [], "counts": [], "beyond": 0, "median": None, "p95": None}
    high = float(np.quantile(values, 0.995))
    if high * 2 > values.max():
        high = float(values.max())  # no far outliers: show all
    edges = np.linspace(min(0.0, float(values.min())), high or 1.0, bins + 1)
    median, p95 = np.quantile(values, [0.5, 0.95])
    return _binned(edges, np.histogram(values, edges)[0]) | {
        "beyond": int((values > edges[-1]).sum()),
        "median": float(median),
        "p95": float(p95),
    }


def curves(rows: Sequence[dict[str, float]], points: int = 400) -> dict[str, list[Any]]:
    """Columns of the training log that are drawn, at most `points` rows, first and last kept."""
    kept = np.unique(np.linspace(0, len(rows) - 1, min(points, len(rows))).astype(int)).tolist()
    names = [name for name in CURVES if any(name in row for row in rows)]
    table: dict[str, list[Any]] = {"step": [rows[i].get("step", i) for i in kept]}
    return table | {name: [rows[i].get(name) for i in kept] for name in names}


def _finite(values: Sequence[float]) -> Any:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _binned(edges: Any, counts: Any) -> dict[str, Any]:
    return {"edges": edges.tolist(), "counts": counts.tolist()}
