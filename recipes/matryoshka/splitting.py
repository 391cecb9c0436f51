"""Feature splitting and absorption by level: how a coarse concept fares as latents are added.

Both read each level's own codes (those of its prefix), and choose latents on other images than they
report on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.measures.factors import folds
from vision_sae.sparse.codes import Codes

LEAST = 5  # images of a value on each side
PURE = 0.8  # share of a specialised latent's images that are of the value
SPLIT = 0.03  # gain in F1 that makes a further latent one of the split parts (SAEBench)


@dataclass(frozen=True)
class LevelSplit:
    """One level and one label, means over its values.

    `f1`: of each value's best latent, on held-out images. `splits`: how many latents it takes until
    a further one adds less than 0.03 to the F1 of "any of them fires" (SAEBench's k-sparse rule,
    Karvonen et al. 2025, arXiv 2503.09532, with firing in the place of probes). `absorbed`: of the
    held-out images that have the value, the share on which its best latent is silent while one
    fires whose images are, at 80% or more, of that value.
    """

    level: int
    prefix: int
    values: int
    f1: float
    splits: float
    absorbed: float


def split_levels(
    codes: Sequence[Codes],
    bounds: Sequence[int],
    keys: Sequence[str],
    about: Sequence[dict[str, Any]],
    label: str,
    *,
    tokens: int = 1,
) -> list[LevelSplit]:
    """Splitting and absorption of a label's values at each level; `codes` are those of its prefix.

    Codes are of image-major rows, `tokens` to an image. Raises DataError when fewer than two values
    have five images on each side.
    """
    members, test = _members(keys, about, label)
    return [
        _of_level(number, bound, _fires(own, tokens, bound), members, test)
        for number, (own, bound) in enumerate(zip(codes, bounds, strict=True))
    ]


def _members(
    keys: Sequence[str], about: Sequence[dict[str, Any]], label: str
) -> tuple[Bool[Tensor, "n v"], Bool[Tensor, " n"]]:
    values = sorted({str(known[label]) for known in about if label in known})
    own = [str(known.get(label)) for known in about]
    columns = [torch.tensor([value == mine for mine in own]) for value in values]
    test = folds(keys, 2) == 0
    kept = [c for c in columns if min(int(c[test].sum()), int(c[~test].sum())) >= LEAST]
    if len(kept) < 2:
        raise DataError(
            f"splitting by {label!r} needs two values with {2 * LEAST} images or more; "
            f"{len(kept)} of {len(values)} have them"
        )
    return torch.stack(kept, 1), test


def _fires(codes: Codes, tokens: int, bound: int) -> Bool[Tensor, "n b"]:
    """Which latents of a prefix fire on each image."""
    on = torch.zeros(len(codes) // tokens, bound, dtype=torch.bool)
    active = codes.active
    on[codes.rows[active].div(tokens, rounding_mode="floor"), codes.indices[active]] = True
    return on


def _of_level(
    number: int, bound: int, on: Tensor, members: Tensor, test: Bool[Tensor, " n"]
) -> LevelSplit:
    train = ~test
    best = f1_scores(on[train], members[train]).argmax(0)  # [v]
    of_value = torch.zeros(3, members.shape[1], dtype=torch.float64)
    for v, main in enumerate(best.tolist()):
        of_value[0, v] = f1_scores(on[test][:, [main]], members[test][:, [v]])[0, 0]
        of_value[1, v] = _splits(on[train], members[train, v], main)
        of_value[2, v] = _absorbed(on, members[:, v], test, main)
    f1, splits, absorbed = of_value.mean(1).tolist()
    return LevelSplit(number, bound, members.shape[1], f1, splits, absorbed)


def f1_scores(on: Bool[Tensor, "n l"], members: Bool[Tensor, "n v"]) -> Float[Tensor, "l v"]:
    """F1 of "the latent fires" for every latent and value."""
    hits = on.T.float() @ members.float()
    return 2 * hits / (on.sum(0)[:, None] + members.sum(0)[None]).clamp(min=1)


def _splits(on: Bool[Tensor, "n l"], member: Bool[Tensor, " n"], main: int, most: int = 10) -> int:
    """How many latents, added greedily, each still raise the F1 of their union."""
    union, count = on[:, main], 1
    best = float(f1_scores(union[:, None], member[:, None]))
    while count < most:
        scores = f1_scores(on | union[:, None], member[:, None])[:, 0]
        if float(scores.max()) < best + SPLIT:
            break
        best = float(scores.max())
        union, count = union | on[:, int(scores.argmax())], count + 1
    return count


def _absorbed(
    on: Bool[Tensor, "n l"], member: Bool[Tensor, " n"], test: Bool[Tensor, " n"], main: int
) -> float:
    fired = on[~test].sum(0)
    purity = (on[~test] & member[~test, None]).sum(0) / fired.clamp(min=1)
    special = (purity >= PURE) & (fired >= LEAST)
    special[main] = False
    positive = on[test & member]
    lost = ~positive[:, main] & positive[:, special].any(1)
    return float(lost.double().mean())
