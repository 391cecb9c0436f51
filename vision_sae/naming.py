"""Names for latents, from a vocabulary embedded in the model's own text-image space."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.measures.latents import ImageCodes


@dataclass(frozen=True)
class Name:
    """The best word for a latent, its cosine, and how far behind the next one is."""

    latent: int
    name: str
    score: float
    runner_up: str
    margin: float


def read_vocabulary(path: Path) -> list[str]:
    """A word or phrase per line, without blanks and repeats. Raises DataError if empty."""
    if not path.is_file():
        raise DataError(f"no vocabulary file {path}: a text file with a word or phrase per line")
    words = list(
        dict.fromkeys(w.strip() for w in path.read_text("utf-8").splitlines() if w.strip())
    )
    if len(words) < 2:
        raise DataError(f"{path} holds {len(words)} words; naming needs at least 2")
    return words


def latent_directions(
    codes: ImageCodes, embeddings: Float[Tensor, "images e"], top: int = 20
) -> tuple[list[int], Float[Tensor, "l e"]]:
    """For each live latent, the activation-weighted mean embedding of its top images, centred.

    The mean over all embedded images is taken off, so that what every image shares names nothing
    (in the spirit of MILAN and CLIP-Dissect; the image side of DN-CBM's naming). Rows of images
    that were not embedded are NaN and must not be among the top ones.
    """
    known = embeddings[~embeddings[:, 0].isnan()]
    rows = []
    for latent in codes.live:
        images, values = (part[:top] for part in codes.of(latent))
        rows.append((embeddings[images] * values[:, None]).sum(0) / values.sum())
    return codes.live, F.normalize(torch.stack(rows) - known.mean(0), dim=1)


def name_latents(
    live: Sequence[int],
    directions: Float[Tensor, "l e"],
    words: Sequence[str],
    texts: Float[Tensor, "v e"],
) -> list[Name]:
    """The word whose centred text embedding has the largest cosine with each direction."""
    centred = F.normalize(texts - texts.mean(0), dim=1)
    best = (directions @ centred.T).topk(2, dim=1)
    return [
        Name(latent, words[int(i[0])], float(v[0]), words[int(i[1])], float(v[0] - v[1]))
        for latent, v, i in zip(live, best.values, best.indices, strict=True)
    ]


def top_images(codes: ImageCodes, top: int = 20) -> list[int]:
    """The images that naming needs: the union of every latent's strongest."""
    return sorted({i for s in codes.live for i in codes.of(s)[0][:top].tolist()})
