"""How an SAE nested over k reads its latents at each k: a gain and a shift of each latent.

    f^(k) = relu(topk_k(a^(k) * z + c^(k)))  over the entries of the largest k

What a latent should say among 4 is not what it should say among 32. With one reading for all k
(MSAE), each k pays for the others; with its own, they share the encoder and the atoms only.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from vision_sae.sparse.codes import Codes

if TYPE_CHECKING:
    from vision_sae.families import Encoded


class Levels(nn.Module):
    """`gain` and `shift` [s g]: one column for each k but the largest, which is the SAE's own."""

    def __init__(self, ks: Sequence[int], s: int) -> None:
        super().__init__()
        self.ks = sorted(set(ks))[:-1]
        self.gain = nn.Parameter(torch.ones(s, len(self.ks)))
        self.shift = nn.Parameter(torch.zeros(s, len(self.ks)))

    def codes(self, found: "Encoded", k: int) -> Codes:
        """The codes of a k, from those of the largest, of which each row has the same number.

        A k between two of training is read as the larger of them, and cut.
        """
        level, n = bisect_left(self.ks, k), len(found.codes)
        z, latents = found.z.view(n, -1), found.codes.indices.view(n, -1)  # type: ignore[union-attr]
        if level < len(self.ks):
            gain, shift = self.gain[:, level], self.shift[:, level]
            with torch.no_grad():
                read = z * gain[latents] + shift[latents]
                place = read.topk(min(self.ks[level], z.shape[1]), dim=1).indices[:, :k]
            latents = latents.gather(1, place)
            z = z.gather(1, place) * gain[latents] + shift[latents]
        else:
            place = z.detach().topk(min(k, z.shape[1]), dim=1).indices
            z, latents = z.gather(1, place), latents.gather(1, place)
        return Codes.even(z.relu(), latents, found.codes.width)
