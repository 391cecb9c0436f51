"""The public fake: a tiny random ViT that sees colours, for tests and for trying things out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vision_sae.adapters.base import ModuleAdapter
from vision_sae.errors import ConfigError
from vision_sae.model.hooks import inference

SIZE, PATCH, WIDTH = 16, 4, 24
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}


class ToyViT(nn.Module):
    """[b 3 16 16] -> 16 patches and a class token of width 24, two blocks, a vector of 12."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
            self.cls = nn.Parameter(torch.randn(WIDTH))
            self.blocks = nn.ModuleList(ToyBlock() for _ in range(2))
            self.head = nn.Linear(WIDTH, 12)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(images), 1, -1), patches], 1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x[:, 1:].mean(1))
        return out


class ToyBlock(nn.Module):
    """Tokens see each other through their mean, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        mixed = x + 0.1 * x.mean(1, keepdim=True)
        out: Tensor = mixed + 0.3 * self.mlp(mixed)
        return out


class ToyAdapter(ModuleAdapter):
    """Its texts are colour words: a word's embedding is that of a picture of the colour."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(ToyViT(seed).eval(), to_input, name=f"toy:{seed}", prefix_tokens=1)

    @property
    def logit_scale(self) -> float:
        return 100.0

    def embed_images(self, batch: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        with inference(self.model):
            return nn.functional.normalize(self.run(batch), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n e"]:
        return self.embed_images(torch.stack([_painted(text) for text in texts]))


def _painted(text: str) -> Float[Tensor, "3 h w"]:
    colour = COLOURS.get(text, (0.5, 0.5, 0.5))
    return (torch.tensor(colour).float() * 2 - 1)[:, None, None].expand(3, SIZE, SIZE)


def to_input(image: Any) -> Float[Tensor, "3 h w"]:
    """A PIL image to 16 x 16 values in -1..1."""
    pixels = np.array(image.convert("RGB").resize((SIZE, SIZE)))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def from_name(argument: str) -> ToyAdapter:
    """`toy`, or `toy:SEED`. Raises ConfigError."""
    if argument and not argument.isdecimal():
        raise ConfigError(f"toy takes a seed after its colon, as in toy:1; got {argument!r}")
    return ToyAdapter(int(argument or 0))
