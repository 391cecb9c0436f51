"""One vector and one code per image: what the measures with labels read."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.measures.case import Case, Dictionary, Encoding
from vision_sae.sparse.codes import Codes, Support


@dataclass(frozen=True)
class ImageRows:
    """Images, one row each.

    x, x_hat, mean: means over an image's tokens, so that taking a latent's mean code off moves x by
    that much of its atom. codes: the largest value of each latent over the tokens (by magnitude),
    which says whether and how strongly it fires on the image.
    """

    x: Float[Tensor, "n d"]
    x_hat: Float[Tensor, "n d"]
    codes: Codes
    mean: Codes
    W_dec: Float[Tensor, "s d"]


def image_rows(*parts: Encoding) -> ImageRows:
    """The images of one or several samples, below each other."""
    most, means = [], []
    for part in parts:
        codes, tokens = part.codes, part.sample.layout.tokens
        most.append(largest(codes, tokens))
        means.append(mean(codes, tokens))
    return ImageRows(
        torch.cat([part.sample.pooled for part in parts]),
        torch.cat([part.pooled_hat for part in parts]),
        Codes.joined(most),
        Codes.joined(means),
        atoms(parts[0].dictionary),
    )


def of_case(case: Case) -> ImageRows:
    """The images to fit on, then those to test on."""
    return image_rows(case.on_fit, case.on_test)


def atoms(dictionary: Dictionary) -> Float[Tensor, "s d"]:
    return dictionary.W_dec.detach().float()


def largest(codes: Codes, tokens: int) -> Codes:
    """Of `tokens` rows each, the value of largest magnitude of each latent."""
    if tokens == 1:
        return codes
    place, inverse = _places(codes, tokens)
    size = torch.zeros(len(place)).scatter_reduce(0, inverse, codes.values.abs().float(), "amax")
    top = torch.full((len(place),), -torch.inf)
    top = top.scatter_reduce(0, inverse, codes.values.float(), "amax")
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
