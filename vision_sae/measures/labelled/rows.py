"""One vector and one code per image, in one pass over a store."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.matching import check_match
from vision_sae.model.hooks import inference
from vision_sae.sae import SAE
from vision_sae.sparse.codes import Codes, Support
from vision_sae.store import Store


@dataclass(frozen=True)
class ImageRows:
    """Images as the measures with labels read them.

    x, x_hat, mean: means over an image's tokens, so that x_hat = mean @ W_dec + b_dec and probes
    on x see what an edit of codes does. codes: the largest value of each latent over the tokens
    (by magnitude), which says whether and how strongly it fires on the image.
    """

    x: Float[Tensor, "n d"]
    x_hat: Float[Tensor, "n o"]
    codes: Codes
    mean: Codes


@torch.no_grad()
def image_rows(
    sae: SAE, store: Store, *, tell: Callable[[int], None] = lambda images: None
) -> ImageRows:
    """Encode a store once. Raises MismatchError for another site, DataError for a transcoder."""
    check_match(sae, store)
    if sae.config.d_out is not None:
        raise DataError("measures with labels read SAEs; this is a transcoder")
    parts: list[tuple[Tensor, Tensor, Codes, Codes]] = []
    with inference(sae):
        for acts in store.in_order(256):
            b, t, d = acts.shape
            codes, x_hat = sae(acts.reshape(-1, d))
            codes = codes.without_zeros()
            pooled = x_hat.view(b, t, -1).mean(1)
            parts.append((acts.mean(1), pooled, largest(codes, t), mean(codes, t)))
            tell(b)
    x, x_hat, most, means = zip(*parts, strict=True)
    return ImageRows(torch.cat(x), torch.cat(x_hat), stacked(most), stacked(means))


def largest(codes: Codes, tokens: int) -> Codes:
    """Of `tokens` rows each, the value of largest magnitude of each latent."""
    if tokens == 1:
        return codes
    place, inverse = _places(codes, tokens)
    size = torch.zeros(len(place)).scatter_reduce(0, inverse, codes.values.abs().float(), "amax")
    top = torch.zeros(len(place)).scatter_reduce(0, inverse, codes.values.float(), "amax")
    return _at(torch.where(top == size, size, -size), place, codes, tokens)


def mean(codes: Codes, tokens: int) -> Codes:
    """The mean over `tokens` rows each, rows on which a latent is off included."""
    if tokens == 1:
        return codes
    place, inverse = _places(codes, tokens)
    sums = torch.zeros(len(place)).index_add_(0, inverse, codes.values.float())
    return _at(sums / tokens, place, codes, tokens)


def _places(codes: Codes, tokens: int) -> tuple[Int[Tensor, " p"], Int[Tensor, " e"]]:
    image = codes.rows.div(tokens, rounding_mode="floor")
    place, inverse = (image * codes.width + codes.indices).unique(return_inverse=True)
    return place, inverse


def _at(values: Tensor, place: Tensor, codes: Codes, tokens: int) -> Codes:
    rows = place.div(codes.width, rounding_mode="floor")
    n, latent = len(codes) // tokens, place - rows * codes.width
    return Codes(values, Support.of_rows(rows, latent, n, codes.width))


def stacked(parts: "tuple[Codes, ...] | list[Codes]") -> Codes:
    """Codes below each other."""
    first = [0]
    for part in parts:
        first.append(first[-1] + len(part))
    rows = torch.cat([part.rows + start for part, start in zip(parts, first, strict=False)])
    indices = torch.cat([part.indices for part in parts])
    support = Support.of_rows(rows, indices, first[-1], parts[0].width)
    return Codes(torch.cat([part.values for part in parts]), support)


def columns(codes: Codes, latents: Int[Tensor, " k"]) -> Float[Tensor, "n k"]:
    """Some latents, dense."""
    by = codes.support.by_latent
    out = torch.zeros(len(codes), len(latents))
    for i, latent in enumerate(latents.tolist()):
        part = slice(int(by.start[latent]), int(by.start[latent + 1]))
        out[by.rows[part], i] = codes.values[by.order[part]].float()
    return out


def live(codes: Codes) -> Int[Tensor, " l"]:
    """The latents that are active in any row."""
    return codes.fired().nonzero()[:, 0]
