"""Do later levels mean finer things? Depth of the lowest common ancestor of top images, by level.

The known hierarchy is a path of labels from coarse to fine, such as category > subcategory >
concept: images that share only the first have a common ancestor of depth 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from vision_sae.errors import DataError
from vision_sae.measures.latents import ImageCodes

PATH = ("category", "subcategory", "concept")  # of EmojiCanvas, coarse to fine


@dataclass(frozen=True)
class LevelDepth:
    """One level: latents with enough images, and the mean depth over them.

    `depth` is the mean over pairs of a latent's top images of how many labels of the path they
    share from the start; `error` is its standard error over latents. `chance` is the depth of
    random pairs of the same images. NaN where no latent has enough images.
    """

    level: int
    first: int
    last: int
    latents: int
    depth: float
    error: float
    chance: float


def depths(
    codes: ImageCodes,
    about: Sequence[dict[str, Any]],
    bounds: Sequence[int],
    *,
    path: Sequence[str] = PATH,
    top: int = 16,
    least: int = 5,
) -> list[LevelDepth]:
    """The depth of each level's latents (sae-for-vlm: Pach et al. 2025, arXiv 2504.02821, sec. 4).

    A latent counts with its `top` strongest images that have the whole path, at least `least` of
    them. Raises DataError when no image has the path.
    """
    places = [_place(known, path) for known in about]
    if not any(places):
        raise DataError(
            f"no image has all of {', '.join(path)}, so there is no hierarchy to compare with"
        )
    chance = _chance(places)
    found, start = [], 0
    for number, bound in enumerate(bounds):
        own = [_of_latent(codes, i, places, top, least) for i in range(start, bound)]
        values = torch.tensor([d for d in own if d is not None], dtype=torch.float64)
        n = len(values)
        mean = float(values.mean()) if n else float("nan")
        error = float(values.std() / n**0.5) if n > 1 else float("nan")
        found.append(LevelDepth(number, start, bound, n, mean, error, chance))
        start = bound
    return found


def _place(known: dict[str, Any], path: Sequence[str]) -> tuple[str, ...] | None:
    return tuple(str(known[label]) for label in path) if all(p in known for p in path) else None


def shared(a: Sequence[str], b: Sequence[str]) -> int:
    """How many labels two paths have in common from their start."""
    for depth, (x, y) in enumerate(zip(a, b, strict=True)):
        if x != y:
            return depth
    return len(a)


def _mean_depth(paths: Sequence[Sequence[str]]) -> float:
    pairs = [shared(a, b) for a, b in combinations(paths, 2)]
    return sum(pairs) / len(pairs)


def _of_latent(
    codes: ImageCodes,
    latent: int,
    places: Sequence[tuple[str, ...] | None],
    top: int,
    least: int,
) -> float | None:
    images = codes.of(latent)[0].tolist()
    paths = [place for i in images if (place := places[i])][:top]
    return _mean_depth(paths) if len(paths) >= max(2, least) else None


def _chance(places: Sequence[tuple[str, ...] | None], pairs: int = 20_000) -> float:
    """The depth of random pairs of different images."""
    known = [place for place in places if place]
    if len(known) < 2:
        return float("nan")
    draw = torch.Generator().manual_seed(0)
    a = torch.randint(len(known), (pairs,), generator=draw)
    b = (a + torch.randint(1, len(known), (pairs,), generator=draw)) % len(known)
    both = zip(a.tolist(), b.tolist(), strict=True)
    return sum(shared(known[i], known[j]) for i, j in both) / pairs
