"""How an SAE nested over k reads its latents at each k: a gain and a shift of each latent.

    f^(k) = relu(topk_k(a^(k) * z + c^(k)))  over the entries of the largest k

What a latent should say among 4 is not what it should say among 32. With one reading for all k
(MSAE), each k pays for the others; with its own, they share the encoder and the atoms only.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vision_sae.sparse.codes import Codes, Support

if TYPE_CHECKING:
    from vision_sae.families import Encoded


class Levels(nn.Module):
    """`gain` and `shift` [s g]: one column for each k but the largest, which is the SAE's own."""

    def __init__(self, ks: Iterable[int], s: int) -> None:
        super().__init__()
        self.ks = sorted(ks)[:-1]
        self.gain = nn.Parameter(torch.ones(s, len(self.ks)))
        self.shift = nn.Parameter(torch.zeros(s, len(self.ks)))

    def codes(self, found: "Encoded", k: int) -> Codes:
        """The codes of a k, from those of the largest, of which each row has the same number.

        A k between two of training is read as the larger of them, and cut.
        """
        support, z = found.codes.support, found.z.view(len(found.codes), -1)  # type: ignore[union-attr]
        place = self.places(support, z, k)
        latents = support.indices.view(z.shape).gather(1, place)
        return Codes.even(self.loud(z.gather(1, place), latents, k).relu(), latents, support.width)

    @torch.no_grad()
    def places(self, support: Support, z: Float[Tensor, "n m"], k: int) -> Int[Tensor, "n k"]:
        """Which entries of each row are the k that speak loudest, in no order."""
        loud = self.loud(z, support.indices.view(z.shape), k)
        return loud.topk(min(k, z.shape[1]), dim=1, sorted=False).indices

    def loud(
        self, z: Float[Tensor, "n k"], latents: Int[Tensor, "n k"], k: int
    ) -> Float[Tensor, "n k"]:
        """Pre-activations as a k reads them."""
        level = bisect_left(self.ks, k)
        if level == len(self.ks):
            return z
        return z * self.gain[:, level][latents] + self.shift[:, level][latents]
