"""Nested reconstructions: Matryoshka losses over dictionary prefixes, over k, and over both.

The entries of a code are dealt into G groups; the first g groups together must reconstruct.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from vision_sae.config import Frozen
from vision_sae.errors import ConfigError
from vision_sae.parallel import ALONE, Group
from vision_sae.sparse import kernels
from vision_sae.sparse.codes import AnyCodes, Codes, Support


class _Nest(Frozen):
    """`mean` divides by the number of nested losses; `sum` adds them up."""

    reduction: Literal["mean", "sum"] = "mean"

    def drawn(self, s: int, seed: int) -> int | None:
        """The length of a prefix that is trained as a dictionary of its own in this step."""
        return None

    def shortest(self, s: int) -> int | None:
        """The shortest prefix that is trained; None where none is."""
        return None

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
        return _bounds(self.shares, s)

    def shortest(self, s: int) -> int:
        return self.bounds(s)[0]

    def groups(self, codes: AnyCodes, seed: int, s: int) -> list[int]:
        return self.bounds(s)


class RandomPrefixes(_Nest):
    """Prefixes drawn anew at each step, short ones more often (Nabeshima 2024).

    The density of a length m is proportional to (m + 1)^power - m^power; the whole is always one.
    """

    kind: Literal["random"] = "random"
    count: int = Field(10, ge=2)
    power: float = Field(0.5, gt=0, le=1)

    def shortest(self, s: int) -> int:
        return 1

    def groups(self, codes: AnyCodes, seed: int, s: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
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
    Strongest by |code|, as latents compete, whatever the norm of their atoms.
    `uniform` counts each loss alike; `reversed` counts the smallest k most (G, G - 1, ..., 1);
    numbers count one k each, from the smallest on (what is past the largest counts as that does);
    `balanced`, of nests with `own`, divides each by its size in the batch, so that one percent of
    it counts alike at every k.
    `own`: each k reads latents with a gain and a shift of its own (`vision_sae.levels`), of topk.
    """

    kind: Literal["k"] = "k"
    ks: tuple[int, ...] = Field(min_length=1)
    weighting: Literal["uniform", "reversed", "balanced"] | tuple[PositiveFloat, ...] = "uniform"
    own: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "Ks":
        if self.weighting == "balanced" and not self.own:
            raise ValueError("weighting='balanced' is for nests with own=True")
        if isinstance(self.weighting, tuple) and len(self.weighting) != len(set(self.ks)):
            raise ValueError(
                f"weighting has {len(self.weighting)} numbers for {len(set(self.ks))} ks"
            )
        return self

    def weights(self, groups: int, errors: Tensor | None = None) -> Float[Tensor, " g"]:
        """`errors` are those of this batch, which "balanced" divides by."""
        raw = torch.ones(groups)
        if self.weighting == "reversed":
            raw = torch.arange(groups, 0, -1.0)
        if isinstance(self.weighting, tuple):
            raw = torch.tensor([*self.weighting, self.weighting[-1]][:groups])
        if self.weighting == "balanced" and errors is not None:
            raw = 1 / errors.clamp(min=torch.finfo(errors.dtype).tiny)
        return raw / raw.sum() if self.reduction == "mean" else raw

    def groups(self, codes: AnyCodes, seed: int, s: int) -> list[int]:
        ks = sorted(set(self.ks))
        more = not isinstance(codes, Codes) or bool((codes.offsets.diff() > ks[-1]).any())
        return [*ks, s] if more and ks[-1] < s else ks


class Both(Ks):
    """Over k and over prefixes at once: any k of any prefix is an SAE of its own.

    In each step the whole dictionary and one prefix, drawn from `shares`, are nested over k (with
    `own`, one k of that prefix in every other step, drawn too, which costs an eighth). The
    prefix's latents compete among themselves, as they do when it is used: for `encode(x, k=,
    prefix=)` every combination is what training saw. `prefix_weight` is what the prefix counts, the
    whole counting 1 less that.
    """

    kind: Literal["both"] = "both"  # type: ignore[assignment]
    shares: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    prefix_weight: float = Field(0.2, gt=0, lt=1)

    def bounds(self, s: int) -> list[int]:
        """The prefix lengths, ascending and distinct, and s."""
        return _bounds(self.shares, s)

    def shortest(self, s: int) -> int:
        return self.bounds(s)[0]

    def drawn(self, s: int, seed: int) -> int:
        shorter = self.bounds(s)[:-1] or [s]
        return shorter[_draw(len(shorter), seed)]

    def drawn_level(self, seed: int) -> int | None:
        """Which of the ks the prefix of this step is trained for, with `own`; none in every other
        step."""
        return None if seed % 2 else _draw(len(set(self.ks)), seed + 1)


def _draw(count: int, seed: int) -> int:
    return int(torch.randint(count, (), generator=torch.Generator().manual_seed(seed)))


def _bounds(shares: tuple[float, ...], s: int) -> list[int]:
    return sorted({max(1, round(share * s)) for share in shares} | {s})


AnyNest = Prefixes | RandomPrefixes | Ks | Both
Nest = Annotated[AnyNest, Field(discriminator="kind")]


def check(nest: AnyNest | None, s: int, k: int | None, prefix: int | None, own: int = 0) -> None:
    """Raises ConfigError where an SAE does not serve a k or a prefix, and says what it does.

    `own` is the family's k: what is past the largest of the nest counts with all together.
    """
    if prefix is not None:
        shortest = nest.shortest(s) if nest else None
        if shortest is None:
            raise ConfigError(
                f"prefix={prefix}: this SAE was not trained over prefixes (nest=prefix, random or "
                "both), so its first latents are no dictionary of their own"
            )
        if not shortest <= prefix <= s:
            raise ConfigError(
                f"prefix={prefix}: this SAE was trained for prefixes of {shortest} to {s} latents"
            )
    if k is not None and isinstance(nest, Ks):
        least, most = min(nest.ks), max(own, *nest.ks)
        if not least <= k <= most:
            raise ConfigError(f"k={k}: this SAE was trained for k of {least} to {most}")


def parts(
    nest: AnyNest,
    codes: AnyCodes,
    atoms: Float[Tensor, "s d"],
    seed: int,
    group: Group = ALONE,
) -> Float[Tensor, "n g d"]:
    """What each group of entries decodes to, without bias, in one pass over the entries.

    With latents on several processes a prefix has some of each process's first latents, or none.
    """
    own, by_rank = codes.width, isinstance(nest, Ks)
    bounds = nest.groups(codes, seed, own * group.size)
    if not by_rank:
        bounds = [min(max(bound - own * group.rank, 0), own) for bound in bounds]
    if isinstance(codes, Codes) or by_rank:
        sparse = codes if isinstance(codes, Codes) else codes.sparse()
        return group.joined(_dealt(sparse, atoms, bounds, by_rank=by_rank))
    return group.joined(_dense(codes.values, atoms, bounds))


def error(
    parts: Float[Tensor, "n g d"], goal: Float[Tensor, "n d"], weights: Float[Tensor, " g"]
) -> Float[Tensor, ""]:
    """sum over g of weights_g |goal - (parts_1 + ... + parts_g)|^2, over all rows.

    Forward and gradient in one sweep, so that no other tensor of the parts' size is kept.
    """
    total: Tensor = _Error.apply(parts, goal, weights.to(parts))
    return total


BLOCK = 128  # rows that fit in a CPU's cache with all their groups


class _Error(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, goal: Tensor, weights: Tensor) -> Tensor:
        slope = torch.empty_like(parts)  # - half the gradient of the parts
        total = parts.new_zeros(())
        step = BLOCK if parts.device.type == "cpu" else max(1, len(parts))
        for first in range(0, len(parts), step):
            rows = slice(first, first + step)
            left = torch.cumsum(parts[rows], 1, out=slope[rows]).neg_().add_(goal[rows, None])
            weighted = left * weights[:, None]
            total += torch.dot(weighted.view(-1), left.reshape(-1))
            left.copy_(weighted)
            for g in reversed(range(left.shape[1] - 1)):
                left[:, g] += left[:, g + 1]
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        to_parts, to_goal, _ = ctx.needs_input_grad
        return (
            slope * (-2 * grad) if to_parts else None,
            slope[:, 0] * (2 * grad) if to_goal else None,
            None,
        )


def _dense(values: Tensor, atoms: Tensor, bounds: list[int]) -> Tensor:
    edges = zip([0, *bounds], bounds, strict=False)
    return torch.stack([values[:, a:b] @ atoms[a:b] for a, b in edges], dim=1)


def ranks(codes: Codes) -> Int[Tensor, " e"]:
    """The place of each entry among its row's, the strongest being 0."""
    order = _in_rows(codes, -codes.values.detach().abs())
    return torch.empty_like(order).scatter_(0, order, _places(codes))


def strongest(codes: Codes, k: int) -> Codes:
    """The k strongest entries of each row."""
    kept = (ranks(codes) < k).nonzero()[:, 0]
    return Codes(codes.values[kept], codes.support.at(kept))


def first(codes: AnyCodes, prefix: int) -> AnyCodes:
    """The entries of the first latents."""
    if not isinstance(codes, Codes):
        inside = torch.arange(codes.width, device=codes.values.device) < prefix
        return codes.map(lambda values: values * inside)
    kept = (codes.indices < prefix).nonzero()[:, 0]
    return Codes(codes.values[kept], codes.support.at(kept))


def _in_rows(codes: Codes, key: Tensor) -> Int[Tensor, " e"]:
    """The order that sorts the entries of each row by a key, the rows staying as they are."""
    n, entries = len(codes), len(key)
    if n and entries % n == 0 and bool((codes.offsets.diff() == entries // n).all()):
        starts = codes.offsets[:-1, None]
        return (key.view(n, -1).argsort(1) + starts).flatten()
    by_key = key.argsort(stable=True)
    return by_key[codes.rows[by_key].argsort(stable=True)]


def _places(codes: Codes) -> Int[Tensor, " e"]:
    """0, 1, 2, ... within each row."""
    return torch.arange(len(codes.indices), device=codes.rows.device) - codes.offsets[codes.rows]


def _dealt(
    codes: Codes, atoms: Tensor, bounds: list[int], *, by_rank: bool
) -> Float[Tensor, "n g d"]:
    """Each row's entries decoded group by group, as n * G short rows."""
    n, groups = len(codes), len(bounds)
    order = _in_rows(codes, -codes.values.detach().abs() if by_rank else codes.indices)
    place = _places(codes) if by_rank else codes.indices[order]
    group = torch.searchsorted(torch.tensor(bounds, device=place.device), place, right=True)
    short_row = codes.rows * groups + group  # sorting inside rows leaves the rows in place
    if bool((group == groups).any()):  # entries past the largest k
        inside = (group < groups).nonzero()[:, 0]
        short_row, order = short_row[inside], order[inside]
    support = Support.of_rows(short_row, codes.indices[order], n * groups, codes.width)
    support = replace(support, row_gradients=codes.support.row_gradients)
    decoded: Tensor = kernels.decode(Codes(codes.values[order], support), atoms)
    return decoded.view(n, groups, -1)
