"""Images with their embeddings and what the latents do on them, to name and to test names on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.data import ImageSource
from vision_sae.data.decode import Decoded, decoded
from vision_sae.errors import DataError
from vision_sae.extract import check_source, read_of
from vision_sae.measures.latents import ImageCodes, image_codes
from vision_sae.model.adapter import TextImageAdapter
from vision_sae.model.hooks import capture, inference
from vision_sae.model.sites import Site, select_tokens, to_tokens
from vision_sae.provenance import Provenance, Tokens
from vision_sae.sae import SAE
from vision_sae.sparse.codes import Codes


@dataclass(frozen=True)
class Seen:
    """Some images: what the latents do on them, their unit embeddings, and what is known of them.

    `what` says in words which they are; `numbers` are theirs in the store that they are of, if they
    are of one; `skipped` names those that could not be read.
    """

    what: str
    codes: ImageCodes
    embeddings: Float[Tensor, "images e"]
    about: list[dict[str, Any]]
    skipped: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()


def restricted(codes: ImageCodes, images: Sequence[int]) -> ImageCodes:
    """What the latents do on some of the images, which are numbered anew in the given order."""
    number = torch.full((codes.images,), -1, dtype=torch.int64)
    number[torch.tensor(images, dtype=torch.int64)] = torch.arange(len(images))
    latent = torch.repeat_interleave(torch.arange(len(codes.start) - 1), codes.start.diff())
    kept = number[codes.image] >= 0
    counts = torch.bincount(latent[kept], minlength=len(codes.start) - 1)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return ImageCodes(start, number[codes.image[kept]], codes.value[kept], len(images))


def see(
    adapter: TextImageAdapter,
    sae: SAE,
    where: Provenance,
    source: ImageSource,
    *,
    images: int = 2000,
    tell: Callable[[int], None] = lambda images: None,
) -> Seen:
    """The first `images` readable images of a source, through the model and the SAE in one pass.

    `where` is what the SAE was trained on: its site and tokens are read. Raises as extraction does,
    and DataError when no image can be read.
    """
    check_source(adapter, source)
    (site,) = read_of(adapter, source, [where.site], where.tokens, "float32").sites
    rows = islice(decoded(source), images)
    about: list[dict[str, Any]] = []
    embeddings, parts, skipped = [], [], []
    while group := list(islice(rows, 64)):
        good = [item for item in group if item.image is not None]
        skipped += [f"{item.key}: {item.error}" for item in group if item.image is None]
        if good:
            embedded, codes = _through(adapter, sae, site, where.tokens, good)
            embeddings.append(embedded)
            parts.append(codes)
            about += [item.about for item in good]
        tell(len(group))
    if not about:
        raise DataError(f"no image of {source.name} can be read, so no name can be tested on it")
    codes = Codes.joined(parts)
    found = image_codes(codes, len(codes) // len(about))
    return Seen(source.name, found, torch.cat(embeddings), about, tuple(skipped))


def _through(
    adapter: TextImageAdapter, sae: SAE, site: Site, tokens: Tokens, items: list[Decoded]
) -> tuple[Float[Tensor, "b e"], Codes]:
    """Unit embeddings of some images, and the codes of their tokens."""
    batch = adapter.prepare([item.image for item in items])
    with capture(adapter.model, [site.name]) as acts:
        embedded = adapter.embed_images(batch).cpu()
    chosen = select_tokens(to_tokens(acts[site.name], site), site, tokens).float().cpu()
    with inference(sae):
        return embedded, sae.encode(chosen.reshape(-1, site.width))
