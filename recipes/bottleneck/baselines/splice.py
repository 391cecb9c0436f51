"""SpLiCE (Bhalla et al. 2024): an image as a sparse non-negative sum of words.

With z the image's unit embedding, less the mean of such, scaled to 1, and C the words' embeddings,
less their mean, scaled to 1:    min over w >= 0 of  1/2 |z - w C|^2 + l1/2 |w|_1
(scikit-learn's Lasso with alpha = l1 / 2d). The codes w are a bottleneck's concepts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, MismatchError

L1, TOLERANCE, STEPS = 0.25, 1e-5, 2000
Tell = Callable[[int], None]


@dataclass(frozen=True)
class Splice:
    """Words, their centred unit directions [v e], and the mean image [e]."""

    words: list[str]
    directions: Float[Tensor, "v e"]
    image_mean: Float[Tensor, " e"]
    l1: float = L1

    @classmethod
    def of(
        cls,
        images: Float[Tensor, "n e"],
        words: Sequence[str],
        texts: Float[Tensor, "v e"],
        l1: float = L1,
    ) -> "Splice":
        """From training images, whose mean is taken off, and the embeddings of a vocabulary.

        Raises ConfigError for an l1 that is not above 0, MismatchError for other counts.
        """
        if not l1 > 0:
            raise ConfigError(f"l1 must be above 0; got {l1}")
        if len(words) != len(texts):
            raise MismatchError(f"{len(words)} words and {len(texts)} embeddings")
        texts = F.normalize(texts, dim=1)
        directions = F.normalize(texts - texts.mean(0), dim=1)
        return cls(list(words), directions, F.normalize(images, dim=1).mean(0), l1)

    def centred(self, images: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        return F.normalize(F.normalize(images, dim=1) - self.image_mean, dim=1)

    def codes(
        self, images: Float[Tensor, "n e"], *, batch: int = 2048, tell: Tell = lambda n: None
    ) -> Any:
        """Codes [n v] as a csr_array."""
        from scipy.sparse import csr_array, vstack

        parts = []
        for some in self.centred(images).split(batch):
            parts.append(csr_array(decompose(some, self.directions, self.l1).double().numpy()))
            tell(len(some))
        return csr_array(vstack(parts))

    def cosine(self, images: Float[Tensor, "n e"]) -> Float[Tensor, " n"]:
        """Of each centred image with its sum of words."""
        codes = torch.from_numpy(self.codes(images).toarray()).float()
        return F.cosine_similarity(codes @ self.directions, self.centred(images))

    @property
    def names(self) -> dict[int, str]:
        return dict(enumerate(self.words))


def decompose(
    z: Float[Tensor, "n e"],
    directions: Float[Tensor, "v e"],
    l1: float,
    tolerance: float = TOLERANCE,
    steps: int = STEPS,
) -> Float[Tensor, "n v"]:
    """The non-negative lasso of each row, by FISTA (Beck and Teboulle 2009) with restarts.

    Stops when no code moves by more than `tolerance`, or after `steps`.
    """
    target = z @ directions.T - l1 / 2
    size = 1 / float(torch.linalg.matrix_norm(directions, 2)) ** 2
    w = ahead = torch.zeros_like(target)
    t = 1.0
    for _ in range(steps):
        new = (ahead + size * (target - ahead @ directions @ directions.T)).clamp(min=0)
        moved = new - w
        if float(((ahead - new) * moved).sum()) > 0:  # it overshoots: start anew (O'Donoghue)
            t = 1.0
        t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead = new + (t - 1) / t_new * moved
        w, t = new, t_new
        if float(moved.abs().max()) < tolerance:
            break
    return w
