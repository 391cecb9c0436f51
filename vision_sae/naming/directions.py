"""Where a latent points in the shared space of images and texts."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.measures.latents import ImageCodes


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


def top_images(codes: ImageCodes, top: int = 20) -> list[int]:
    """The images that naming needs: the union of every latent's strongest."""
    return sorted({i for s in codes.live for i in codes.of(s)[0][:top].tolist()})
