"""Nested reconstructions: Matryoshka losses over dictionary prefixes and over k.

The entries of a code are dealt into G groups; the first g groups together must reconstruct.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from vision_sae.config import Frozen
from vision_sae.sparse import kernels
from vision_sae.sparse.codes import AnyCodes, Codes, Support


class _Nest(Frozen):
    reduction: Literal["mean", "sum"] = "mean"

    def weights(self, groups: int) -> Float[Tensor, " g"]:
        """What each nested loss counts."""
        return torch.full((groups,), 1 / groups if self.reduction == "mean" else 1.0)


class Prefixes(_Nest):
    """Fixed prefixes of the dictionary (Bussmann et al. 2025, arXiv 2503.17547).

    `shares` of the latents, the last being 1.
    """

    kind: Literal["prefix"] = "prefix"
    shares: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)

    def bounds(self, s: int) -> list[int]:
        """The prefix lengths: ascending, distinct, the last being s."""
        return sorted({max(1, round(share * s)) for share in self.shares} | {s})

    def groups(self, codes: AnyCodes, seed: int) -> list[int]:
        return self.bounds(codes.width)


class RandomPrefixes(_Nest):
    """Prefixes drawn anew at each step, short ones more often (Nabeshima 2024).

    The density of a length m is proportional to (m + 1)^power - m^power; the whole is always one.
    """

    kind: Literal["random"] = "random"
    count: int = Field(10, ge=2)
    power: float = Field(0.5, gt=0, le=1)

    def groups(self, codes: AnyCodes, seed: int) -> list[int]:
        s, generator = codes.width, torch.Generator().manual_seed(seed)
        lengths = torch.arange(1, s, dtype=torch.float64)
        odds = (lengths + 1) ** self.power - lengths**self.power
        drawn = min(self.count - 1, s - 1)
        chosen = (
            torch.multinomial(odds, drawn, generator=generator) + 1 if drawn else torch.empty(0)
        )
        return [*sorted(int(m) for m in chosen), s]


class Ks(_Nest):
    """The k strongest latents of each row, for several k (MSAE, Zaigrajew et al. 2025).

    Where rows have more latents than the largest k, all of them together are the last group.
    `uniform` counts each loss alike; `reversed` counts the smallest k most (G, G - 1, ..., 1).
    """

    kind: Literal["k"] = "k"
    ks: tuple[int, ...] = Field(min_length=1)
    weighting: Literal["uniform", "reversed"] = "uniform"

    def weights(self, groups: int) -> Float[Tensor, " g"]:
        raw = torch.ones(groups)
        if self.weighting == "reversed":
            raw = torch.arange(groups, 0, -1.0)
        return raw / raw.sum() if self.reduction == "mean" else raw

    def groups(self, codes: AnyCodes, seed: int) -> list[int]:
        ks = sorted(set(self.ks))
        more = not isinstance(codes, Codes) or bool((codes.offsets.diff() > ks[-1]).any())
        return [*ks, codes.width] if more and ks[-1] < codes.width else ks


Nest = Annotated[Prefixes | RandomPrefixes | Ks, Field(discriminator="kind")]


def reconstructions(
    nest: Prefixes | RandomPrefixes | Ks,
    codes: AnyCodes,
    atoms: Float[Tensor, "s d"],
    bias: Float[Tensor, " d"],
    seed: int,
) -> Float[Tensor, "n g d"]:
    """The reconstruction from each nested part, smallest first, in one pass over the entries."""
    bounds = nest.groups(codes, seed)
    if not isinstance(codes, Codes):
        if not isinstance(nest, Ks):
            return _dense(codes.values, atoms, bounds).cumsum(1) + bias
        codes = codes.sparse()
    place = ranks(codes) if isinstance(nest, Ks) else codes.indices
    parts = _dealt(codes, atoms, place, bounds)
    return parts.cumsum(1) + bias


def _dense(values: Tensor, atoms: Tensor, bounds: list[int]) -> Tensor:
    edges = zip([0, *bounds], bounds, strict=False)
    return torch.stack([values[:, a:b] @ atoms[a:b] for a, b in edges], dim=1)


def ranks(codes: Codes) -> Int[Tensor, " e"]:
    """The place of each entry among its row's, the strongest being 0."""
    by_value = codes.values.detach().abs().argsort(descending=True, stable=True)
    order = by_value[codes.rows[by_value].argsort(stable=True)]
    place = torch.arange(len(order), device=order.device) - codes.offsets[codes.rows[order]]
    return torch.empty_like(order).scatter_(0, order, place)


def _dealt(codes: Codes, atoms: Tensor, place: Tensor, bounds: list[int]) -> Float[Tensor, "n g d"]:
    """Each row's entries decoded group by group, as n * G short rows."""
    n, groups = len(codes), len(bounds)
    edges = torch.tensor(bounds, device=place.device)
    group = torch.searchsorted(edges, place, right=True)
    inside = group < groups  # entries past the largest k
    short_row = (codes.rows * groups + group)[inside]
    short_row, order = short_row.sort(stable=True)
    support = Support.of_rows(short_row, codes.indices[inside][order], n * groups, codes.width)
    parts: Tensor = kernels.decode(Codes(codes.values[inside][order], support), atoms)
    return parts.view(n, groups, -1)
