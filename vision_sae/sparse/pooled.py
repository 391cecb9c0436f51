"""Codes of tokens as codes of images: one row for each `tokens` rows that follow each other."""

import torch
from jaxtyping import Int
from torch import Tensor

from vision_sae.sparse.codes import Codes, Support


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
