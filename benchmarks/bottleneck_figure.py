"""The figure of the guide: accuracy by concepts per decision, and worst groups before and after.

python benchmarks/bottleneck_figure.py results/bottleneck assets/figures/bottleneck.webp
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

PROBE = "linear probe, where the SAE reads"
SHOWN = {"canvas-category": "#0072b2", "canvas-style": "#d55e00", "canvas-skin-tone": "#009e73"}
BARS = {
    PROBE: "probe",
    "bottleneck": "bottleneck",
    "without, by query": "without, by query",
    "without, by query, refitted": "and refitted",
}


def values(cells: list[Any], task: str, method: str, name: str) -> list[float]:
    rows = [row for cell in cells if cell["task"] == task for row in cell["rows"]]
    return [row[name] for row in rows if row["method"] == method and row[name] is not None]


def mean(found: list[float]) -> float:
    return 100 * sum(found) / len(found) if found else float("nan")


def paths(axis: Any, cells: list[Any]) -> None:
    for task, colour in SHOWN.items():
        mine = [cell["path"] for cell in cells if cell["task"] == task and "path" in cell]
        for path in mine:
            axis.plot([p["per_decision"] for p in path], [100 * p["score"] for p in path],
                      color=colour, alpha=0.5, lw=1)  # fmt: skip
        label = task.removeprefix("canvas-").replace("-", " ")
        if mine:
            axis.plot([], [], color=colour, label=label)
            probe = mean(values(cells, task, PROBE, "validation"))
            axis.axhline(probe, color=colour, ls=":", lw=1.2)
    axis.axvline(25, color="0.7", lw=0.8)
    axis.set_xlabel("concepts that reach 95% of a logit, mean")
    axis.set_ylabel("validation accuracy, %")
    axis.set_title("a path for each SAE seed; dotted: linear probe", fontsize=9)
    axis.legend(frameon=False, fontsize=8)


def groups(axis: Any, cells: list[Any]) -> None:
    tasks = ("canvas-spurious-ground", "canvas-spurious-style")
    for i, task in enumerate(tasks):
        for j, method in enumerate(BARS):
            found = values(cells, task, method, "worst_group")
            place = j + i * (len(BARS) + 1)
            axis.bar(place, mean(found), color=f"C{i}", alpha=0.4 + 0.15 * j)
            axis.plot([place] * len(found), [100 * v for v in found], ".", color="0.2", ms=4)
    ticks = [j + i * (len(BARS) + 1) for i in range(2) for j in range(len(BARS))]
    axis.set_xticks(ticks, 2 * list(BARS.values()), rotation=60, ha="right", fontsize=7)
    axis.set_ylabel("worst group's test accuracy, %")
    axis.set_title("spurious ground (left), spurious style (right)", fontsize=9)


def main() -> None:
    cells = json.loads((Path(sys.argv[1]) / "results.json").read_text())["cells"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    paths(axes[0], cells)
    groups(axes[1], cells)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(sys.argv[2], dpi=110)


if __name__ == "__main__":
    main()
