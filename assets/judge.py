"""emoji-judge: which of 20 objects, in which of 9 looks, a 32 px picture shows."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from vision_sae.errors import require

FOLDER = Path(__file__).parent / "emoji-judge"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SIZE = 64  # pictures are enlarged to this


class Verdict(NamedTuple):
    """Logits of each picture."""

    object: Float[Tensor, "n objects"]
    style: Float[Tensor, "n styles"]


class Judge(nn.Module):
    """A small residual network whose one linear layer names the object and the style.

    judge = Judge.load()
    names = [judge.objects[i] for i in judge(images).object.argmax(1)]
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.objects: tuple[str, ...] = tuple(config["objects"])
        self.styles: tuple[str, ...] = tuple(config["styles"])
        self.config = config
        outputs = len(self.objects) + len(self.styles)
        timm = require("timm", "timm")
        self.net = timm.create_model(config["timm"], num_classes=outputs, **config["arguments"])

    @classmethod
    def load(cls, folder: Path = FOLDER) -> "Judge":
        judge = cls(json.loads((folder / CONFIG).read_text()))
        weights = {name: t.float() for name, t in load_file(folder / WEIGHTS).items()}
        judge.net.load_state_dict(weights, strict=False)  # counters of batches are left out
        return judge.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Verdict:
        """Images in 0..1."""
        logits = self.net(_entered(images))
        return Verdict(*logits.split([len(self.objects), len(self.styles)], dim=1))

    def embed(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n e"]:
        """The features before the last layer, for distances."""
        features: Tensor = self.net.forward_head(
            self.net.forward_features(_entered(images)), pre_logits=True
        )
        return features


def _entered(images: Tensor) -> Tensor:
    large = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    return large * 2 - 1
