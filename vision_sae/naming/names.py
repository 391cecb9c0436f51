"""A latent's name: the word whose text embedding lies nearest to the latent's direction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.naming.detection import Tested
from vision_sae.naming.known import Known, Verdict

UNNAMED = "unnamed"
DETECTS = 0.8  # AUROC from which a name is said to detect


@dataclass(frozen=True)
class Name:
    """The best word for a latent, its cosine, and how far behind the next one is.

    `name` is `word`, or "unnamed" when the score is below the threshold. The rest is how the word
    did: see `Tested` (auroc, positives, images, untested), of images that did not choose it, and
    `Known` (carried, found, verdict), by the labels of all images.
    """

    latent: int
    name: str
    score: float
    runner_up: str
    margin: float
    word: str = ""
    auroc: float | None = None
    positives: int = 0
    images: int = 0
    untested: str = ""
    carried: float | None = None
    found: float | None = None
    verdict: Verdict | None = None

    @property
    def detects(self) -> bool:
        """Whether it is named, and the name finds the latent's images: AUROC of 0.8 or more."""
        return self.name != UNNAMED and self.auroc is not None and self.auroc >= DETECTS


@dataclass(frozen=True)
class Naming:
    """The names of an SAE's live latents, and as plain data how they were found and tested."""

    names: list[Name]
    how: dict[str, Any]


def name_latents(
    latents: Sequence[int],
    directions: Float[Tensor, "l e"],
    words: Sequence[str],
    texts: Float[Tensor, "v e"],
    *,
    chosen: Int[Tensor, " l"] | None = None,
    centre: bool = True,
    threshold: float = -1.0,
) -> list[Name]:
    """The word of largest cosine for each direction (DN-CBM, section 3.2), with its runner-up.

    `chosen` are numbers of words that were chosen otherwise (by detection, say); the runner-up is
    then the nearest other word, and the margin may be negative. `centre` takes the mean over all
    words off the text embeddings. A score below `threshold` is called "unnamed". Raises DataError
    for fewer than two words.
    """
    if len(words) < 2:
        raise DataError(f"naming needs at least 2 words to choose from; got {len(words)}")
    texts = F.normalize(texts - texts.mean(0) if centre else texts, dim=1)
    names = []
    for start in range(0, len(latents), 1024):  # 20,000 words by 1,024 directions are 80 MB
        part = slice(start, start + 1024)
        cosines = directions[part] @ texts.T
        best = cosines.topk(2, dim=1).indices
        first = best[:, 0] if chosen is None else chosen[part]
        second = torch.where(best[:, 0] == first, best[:, 1], best[:, 0])
        scores, next_scores = (
            cosines.gather(1, i[:, None])[:, 0].tolist() for i in (first, second)
        )
        rows = zip(latents[part], first.tolist(), scores, second.tolist(), next_scores, strict=True)
        names += [_name(s, words[i], x, words[j], y, threshold) for s, i, x, j, y in rows]
    return names


def nearest(
    directions: Float[Tensor, "l e"], texts: Float[Tensor, "v e"], k: int
) -> Int[Tensor, "l m"]:
    """The k texts of largest cosine for each direction, or all, the nearest first."""
    k = min(k, len(texts))
    return torch.cat([(part @ texts.T).topk(k, 1).indices for part in directions.split(1024)])


def _name(
    latent: int, word: str, score: float, next_word: str, next_score: float, threshold: float
) -> Name:
    name = word if score >= threshold else UNNAMED
    return Name(latent, name, score, next_word, score - next_score, word)


def with_tests(names: Sequence[Name], tested: Sequence[Tested]) -> list[Name]:
    """The names with how they do as detectors."""
    return [
        replace(n, auroc=t.auroc, positives=t.positives, images=t.images, untested=t.untested)
        for n, t in zip(names, tested, strict=True)
    ]


def with_known(names: Sequence[Name], known: Sequence[Known]) -> list[Name]:
    """The names with whether they are known to be right."""
    return [
        replace(n, carried=k.carried, found=k.found, verdict=k.verdict)
        for n, k in zip(names, known, strict=True)
    ]
