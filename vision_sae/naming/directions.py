"""Where a latent points in the shared space of images and texts, in three ways.

`decoder`: its atom, for SAEs on the model's own embeddings. For SAEs inside the tower `images`, the
mean embedding of the images that it fires on most, and `splice`, what adding its atom at the site
does to an image's embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.extract import Reading, activations_of
from vision_sae.measures.latents import ImageCodes
from vision_sae.model.adapter import TextImageAdapter, mapped
from vision_sae.model.edit import on_tokens
from vision_sae.model.hooks import edit
from vision_sae.model.sites import Site
from vision_sae.provenance import Tokens
from vision_sae.sae import SAE

Way = Literal["decoder", "images", "splice"]
WAYS: tuple[Way, ...] = ("decoder", "images", "splice")


@dataclass(frozen=True)
class Directions:
    """Unit vectors in the shared space, one for each of some latents, and how they were found."""

    latents: list[int]
    vectors: Float[Tensor, "l e"]
    way: Way


def decoder_directions(sae: SAE, latents: Sequence[int]) -> Directions:
    """The atoms, scaled to 1 (DN-CBM), which are differences and so need no centring."""
    atoms = sae.W_dec.detach()[torch.tensor(list(latents))].float().cpu()
    return Directions(list(latents), F.normalize(atoms, dim=1), "decoder")


def image_directions(
    codes: ImageCodes,
    embeddings: Float[Tensor, "images e"],
    *,
    top: int = 20,
    centre: bool = True,
) -> Directions:
    """For each live latent, the activation-weighted mean embedding of its top images.

    `centre` takes off the mean over all embedded images, so that what every image shares names
    nothing (in the spirit of MILAN and CLIP-Dissect). Rows of images that were not embedded are
    NaN and must not be among the top ones.
    """
    rows = []
    for latent in codes.live:
        images, values = (part[:top] for part in codes.of(latent))
        rows.append((embeddings[images] * values[:, None]).sum(0) / values.sum())
    middle = embeddings[~embeddings[:, 0].isnan()].mean(0) if centre else 0.0
    return Directions(codes.live, F.normalize(torch.stack(rows) - middle, dim=1), "images")


def top_images(codes: ImageCodes, top: int = 20) -> list[int]:
    """The images that `image_directions` needs: the union of every latent's strongest."""
    return sorted({i for s in codes.live for i in codes.of(s)[0][:top].tolist()})


def splice_directions(
    adapter: TextImageAdapter,
    sae: SAE,
    site: Site,
    tokens: Tokens,
    strengths: Float[Tensor, " l"],
    latents: Sequence[int],
    batch: Any,
    *,
    together: int = 256,
    tell: Callable[[int], None] = lambda latents: None,
) -> Directions:
    """How the images' embeddings move when a latent's atom is added at the site.

    For each of `latents`, atom times strength (its usual activation) is added to the tokens that
    the SAE reads, on every image of the prepared `batch`, and goes through the rest of the tower:
    the mean difference of unit embeddings, scaled to 1. `together` bounds how many pictures are in
    one forward pass. Raises DataError where an atom cannot be put back (pooled tokens), or for a
    transcoder, which writes elsewhere.
    """
    if sae.config.d_out is not None:
        raise DataError("a transcoder reads one site and writes another; use --directions images")
    atoms = sae.W_dec.detach()[torch.tensor(list(latents))].float() * strengths[:, None].float()
    plain = adapter.embed_images(batch).cpu()
    rows = []
    for some in atoms.split(max(1, together // len(plain))):
        repeated = mapped(batch, partial(_copies, len(some)))
        added = some.repeat_interleave(len(plain), 0)
        with edit(adapter.model, site.name, on_tokens(_adding(added), site, tokens)):
            moved = adapter.embed_images(repeated).cpu()
        rows.append((moved.view(len(some), len(plain), -1) - plain).mean(1))
        tell(len(some))
    return Directions(list(latents), F.normalize(torch.cat(rows), dim=1), "splice")


def _copies(n: int, batch: Tensor) -> Tensor:
    return torch.cat([batch] * n)


def _adding(added: Float[Tensor, "b d"]) -> Callable[[Tensor], Tensor]:
    """One vector for each picture, on each of its tokens; rows come picture by picture."""
    return lambda x: x + added.to(x).repeat_interleave(len(x) // len(added), 0)


def in_shared_space(adapter: TextImageAdapter, site: Site, batch: Any) -> bool:
    """Whether the site gives the model's own embeddings, so that atoms are directions there."""
    if site.layout != "vector":
        return False
    given = activations_of(adapter, batch, Reading((site,)))[site.name][:, 0].float().cpu()
    embedded = adapter.embed_images(batch).cpu()
    return given.shape == embedded.shape and torch.allclose(
        F.normalize(given, dim=1), embedded, atol=1e-4
    )
