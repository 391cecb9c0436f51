"""Draw what the benchmark asks for; the unedited pictures once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vision_sae.files import write_tensors
from vision_sae.recipes.unlearn.benchmark.world import Ask, World
from vision_sae.recipes.unlearn.draw import Pictures, draw


def draw_asks(world: World, run: Any, asks: Sequence[Ask], batch: int = 64) -> Pictures:
    return draw(
        run, [ask.text for ask in asks], [ask.seed for ask in asks],
        steps=world.steps, guidance=world.guidance, batch=batch,
    )  # fmt: skip


class Plain:
    """The unedited pictures, each drawn once; with a file they outlive the process."""

    def __init__(self, world: World, file: Path | None = None, batch: int = 64) -> None:
        self.world, self.file, self.batch = world, file, batch
        self.known: dict[str, Tensor] = load_file(file) if file and file.exists() else {}

    def __call__(self, asks: Sequence[Ask]) -> Pictures:
        missing = [ask for ask in dict.fromkeys(asks) if self._key(ask) not in self.known]
        if missing:
            drawn = draw_asks(self.world, self.world.pipe, missing, self.batch)
            self.known |= {self._key(ask): p for ask, p in zip(missing, drawn, strict=True)}
            if self.file:
                write_tensors(self.file, self.known)
        return torch.stack([self.known[self._key(ask)] for ask in asks])

    def _key(self, ask: Ask) -> str:
        return json.dumps([ask.text, ask.seed, self.world.steps, self.world.guidance])
