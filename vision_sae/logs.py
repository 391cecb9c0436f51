"""Training numbers on disk: a JSON line per log, and TensorBoard events where it is installed."""

import json
import logging
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
log = logging.getLogger(__name__)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a training's log; empty when there is none."""
    path = folder / METRICS
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


class TrainingLog:
    """A callback for `train`. A resumed run first drops the rows that it will write again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        self.path.touch()  # before anything else: it marks the folder as a training's
        self.board = _summary_writer(folder / "tensorboard")
        self._started = False

    def __call__(self, step: int, numbers: dict[str, float]) -> None:
        if not self._started:
            kept = [row for row in read_metrics(self.path.parent) if row["step"] < step]
            self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))
            self._started = True
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        if self.board:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.board:
            self.board.close()


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed; training numbers go to %s only", METRICS)
        return None
    return SummaryWriter(str(folder))
