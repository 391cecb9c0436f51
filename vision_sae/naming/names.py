"""A latent's name: the word whose text embedding lies nearest to the latent's direction."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import DataError

UNNAMED = "unnamed"


@dataclass(frozen=True)
class Name:
    """The best word for a latent, its cosine, and how far behind the next one is.

    `name` is `word`, or "unnamed" when the score is below the threshold.
    """

    latent: int
    name: str
    score: float
    runner_up: str
    margin: float
    word: str = ""


def name_latents(
    live: Sequence[int],
    directions: Float[Tensor, "l e"],
    words: Sequence[str],
    texts: Float[Tensor, "v e"],
    *,
    centre: bool = True,
    threshold: float = -1.0,
) -> list[Name]:
    """The word of largest cosine for each direction (DN-CBM, section 3.2), with its runner-up.

    `centre` takes the mean over all words off the text embeddings, as the directions' own should
    be. A score below `threshold` is called "unnamed". Raises DataError for fewer than two words.
    """
    if len(words) < 2:
        raise DataError(f"naming needs at least 2 words to choose from; got {len(words)}")
    texts = F.normalize(texts - texts.mean(0) if centre else texts, dim=1)
    values, at = [], []
    for part in directions.split(1024):  # 20,000 words by 1,024 directions are 80 MB
        best = (part @ texts.T).topk(2, dim=1)
        values.append(best.values)
        at.append(best.indices)
    rows = zip(torch.cat(values).tolist(), torch.cat(at).tolist(), strict=True)
    return [
        _name(latent, score, words[first], next_score, words[second], threshold)
        for latent, ((score, next_score), (first, second)) in zip(live, rows, strict=True)
    ]


def _name(
    latent: int, score: float, word: str, next_score: float, next_word: str, threshold: float
) -> Name:
    name = word if score >= threshold else UNNAMED
    return Name(latent, name, score, next_word, score - next_score, word)
