"""Features of pictures from a CLIP adapter: the embedding, and the tokens of its layers."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.model.hooks import capture, inference


class ClipFeatures:
    """`embed` gives unit embeddings, `layers` the patch tokens of every other block.

    Pictures are brought to the model's side by bicubic interpolation and normalised by `mean` and
    `std` (emoji-clip's own: 0.5), in batches of a fixed size.
    """

    def __init__(
        self, adapter: Any, side: int = 64, mean: float = 0.5, std: float = 0.5, batch: int = 64
    ) -> None:
        self.adapter, self.side, self.mean, self.std = adapter, side, mean, std
        self.batch = batch
        blocks = len(adapter.model.visual.transformer.resblocks)
        self.sites = [f"visual.transformer.resblocks.{i}" for i in range(1, blocks, 2)]

    def prepare(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 side side"]:
        size = (self.side, self.side)
        scaled = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        return (scaled - self.mean) / self.std

    def embed(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n e"]:
        parts = images.split(self.batch)
        return torch.cat([self.adapter.embed_images(self.prepare(part)).cpu() for part in parts])

    def layers(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n t d"]]:
        """Of each layer, without the class token."""
        model = self.adapter.model
        with inference(model), capture(model, self.sites) as found:
            self.adapter.run(self.prepare(images).to(next(model.parameters()).device))
        return [found[site][:, 1:].float().cpu() for site in self.sites]
