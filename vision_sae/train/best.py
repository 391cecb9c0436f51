"""The best weights so far on held-out rows, and whether to give up."""

import math

import torch
from torch import Tensor

from vision_sae.sae import SAE


class Best:
    """Tracks the lowest FVU; empty until something is noted."""

    def __init__(self) -> None:
        self.fvu, self.waited = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def note(self, fvu: float, sae: SAE) -> None:
        """Keep a copy of the weights when they are better than all before."""
        if fvu < self.fvu:
            self.fvu, self.waited = fvu, 0
            self.weights = {name: t.detach().clone() for name, t in sae.state_dict().items()}
        else:
            self.waited += 1

    def exhausted(self, patience: int | None) -> bool:
        return patience is not None and self.waited >= patience

    def restore(self, sae: SAE) -> None:
        if self.weights:
            sae.load_state_dict(self.weights)

    def tensors(self) -> dict[str, Tensor]:
        fvu = torch.tensor(self.fvu, dtype=torch.float64)
        numbers = {"fvu": fvu, "waited": torch.tensor(self.waited)}
        return numbers | {f"weights.{name}": t for name, t in self.weights.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.fvu, self.waited = float(tensors["fvu"]), int(tensors["waited"])
        self.weights = {
            name.removeprefix("weights."): t
            for name, t in tensors.items()
            if name.startswith("weights.")
        }
