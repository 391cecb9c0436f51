"""One vector and one code per image: what the measures with labels read."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.measures.case import Case, Dictionary, Encoding
from vision_sae.sparse import pooled
from vision_sae.sparse.codes import Codes


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
        most.append(pooled.largest(codes, tokens))
        means.append(pooled.mean(codes, tokens))
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
