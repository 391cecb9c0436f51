"""A bottleneck from given concept words, in the manner of LF-CBM (Oikarinen et al. 2023).

Where the backbone is the text-image model itself, its projection onto concepts is exact: the score
of a concept is the image's cosine with the word's embedding, standardised over training images.
Their filters are kept: words that are nearly a class name or another word, and words that fire on
no training image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import DataError

LIKE_CLASS, LIKE_OTHER, LEAST = 0.85, 0.9, 0.25  # their cosines; the top-5 mean that a word needs


@dataclass(frozen=True)
class WordConcepts:
    """Kept words, their directions [w e], and the mean and deviation of their training scores."""

    words: list[str]
    directions: Float[Tensor, "w e"]
    mean: Float[Tensor, " w"]
    deviation: Float[Tensor, " w"]
    left_out: dict[str, str]  # a word, and why

    @classmethod
    def of(
        cls,
        images: Float[Tensor, "n e"],
        words: Sequence[str],
        texts: Float[Tensor, "v e"],
        classes: Float[Tensor, "c e"],
        *,
        like_class: float = LIKE_CLASS,
        like_other: float = LIKE_OTHER,
        least: float = LEAST,
    ) -> "WordConcepts":
        """From training images and the unit embeddings of words and of class names.

        Raises DataError when no word is left.
        """
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
        scores = images @ texts.T
        strongest = scores.topk(min(5, len(scores)), dim=0).values.mean(0)
        near_class = (texts @ F.normalize(classes, dim=1).T).amax(1)
        left_out, kept = {}, list[int]()
        for i, word in enumerate(words):
            twin = next((j for j in kept if float(texts[i] @ texts[j]) > like_other), None)
            if float(near_class[i]) > like_class:
                left_out[word] = "nearly a class name"
            elif float(strongest[i]) < least:
                left_out[word] = "on no image"
            elif twin is not None:
                left_out[word] = f"nearly {words[twin]!r}"
            else:
                kept.append(i)
        if not kept:
            raise DataError(
                f"none of {len(words)} concept words is left: {dict(list(left_out.items())[:3])}"
            )
        mine = scores[:, kept]
        deviation = mine.std(0).clamp(min=1e-9)
        return cls([words[i] for i in kept], texts[kept], mine.mean(0), deviation, left_out)

    def scores(self, images: Float[Tensor, "n e"]) -> Any:
        """Standardised scores [n w] as a csr_array, for a Bottleneck."""
        from scipy.sparse import csr_array

        found = F.normalize(images, dim=1) @ self.directions.T
        return csr_array(((found - self.mean) / self.deviation).double().numpy())

    @property
    def names(self) -> dict[int, str]:
        return dict(enumerate(self.words))
