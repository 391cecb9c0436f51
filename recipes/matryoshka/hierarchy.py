"""Which latents are parts of which: a tree over the levels of a nested dictionary.

A latent's level is the smallest trained prefix that holds it. A child fires (almost) only where its
parent does, and the parent also elsewhere; shape key: s latents, e pairs that fire together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.matching import check_match
from vision_sae.model.hooks import inference
from vision_sae.recipes.matryoshka.level import Level, needs_levels
from vision_sae.sae import SAE
from vision_sae.sparse.codes import Codes
from vision_sae.store import Store

IMAGES = 256  # that are encoded at a time


@dataclass(frozen=True)
class Link:
    """A child and its parent.

    `p_parent` is P(parent fires | child fires), `p_child` the other way round, both over rows;
    `cosine` is that of their atoms.
    """

    child: int
    parent: int
    p_parent: float
    p_child: float
    cosine: float


@dataclass(frozen=True)
class Hierarchy:
    """Levels (bounds of the prefixes), each latent's rows, and a parent for those that have one."""

    bounds: list[int]
    fired: list[int]
    rows: int
    links: dict[int, Link]

    def level(self, latent: int) -> int:
        """The number of the smallest prefix that holds a latent."""
        return next(i for i, bound in enumerate(self.bounds) if latent < bound)

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The children of each latent that has some, the most frequent first."""
        found: dict[int, list[int]] = {}
        for child, link in self.links.items():
            found.setdefault(link.parent, []).append(child)
        return {p: sorted(c, key=lambda i: -self.fired[i]) for p, c in found.items()}

    @property
    def roots(self) -> list[int]:
        """Live latents without a parent, the most frequent first."""
        live = [i for i, n in enumerate(self.fired) if n and i not in self.links]
        return sorted(live, key=lambda i: -self.fired[i])

    def ancestors(self, latent: int) -> list[int]:
        """The parent, its parent, and so on."""
        found: list[int] = []
        while latent in self.links:
            latent = self.links[latent].parent
            found.append(latent)
        return found


def hierarchy(
    sae: SAE,
    store: Store,
    *,
    least: float = 0.5,
    cosine: float = 0.0,
    rows: int = 5,
    tell: Callable[[int], None] = lambda images: None,
) -> Hierarchy:
    """The tree that an SAE nested over prefixes has on a store.

    A latent's parent is the latent of an earlier level with the largest P(parent | child), if that
    is at least `least`, above P(child | parent), above what independence would give, and the atoms'
    cosine is above `cosine`. Latents that fire on fewer than `rows` rows have none. Each level's
    codes are those of its own prefix, so that later latents cannot absorb what a parent sees.
    Raises MismatchError, and ConfigError for an SAE that was not nested over prefixes.
    """
    check_match(sae, store)
    bounds = needs_levels(sae)
    together, fired, total = _counts(sae, store, bounds, tell)
    atoms = F.normalize(sae.W_dec.detach(), dim=1)
    links = {}
    for child in _enough(fired, rows):
        link = _best(child, together, fired, total, bounds, atoms, least, cosine)
        if link is not None:
            links[child] = link
    return Hierarchy(bounds, fired.tolist(), total, links)


def _enough(fired: Int[Tensor, " s"], rows: int) -> list[int]:
    found: list[int] = (fired >= rows).nonzero()[:, 0].tolist()
    return found


def _counts(
    sae: SAE, store: Store, bounds: list[int], tell: Callable[[int], None]
) -> tuple[Int[Tensor, "s s"], Int[Tensor, " s"], int]:
    """How often each latent fires with each of the levels before its own, and by itself."""
    s = sae.config.s
    together = torch.zeros(s, s, dtype=torch.int32)
    fired, total = torch.zeros(s, dtype=torch.int64), 0
    levels = [Level(sae, prefix=bound) for bound in bounds]
    with inference(sae):
        for acts in store.in_order(IMAGES):
            x = acts.flatten(0, 1)
            on = [_fired(level.encode(x)) for level in levels]
            start = 0
            for number, bound in enumerate(bounds):
                own = on[number][:, start:bound]
                fired[start:bound] += own.sum(0).long()
                if start:
                    together[start:bound, :start] += _earlier(own, on[:number], bounds)
                start = bound
            total += len(x)
            tell(len(acts))
    return together, fired, total


def _fired(codes: Codes) -> Float[Tensor, "n s"]:
    """1 where a latent is active; dense, for a block of rows only."""
    on = torch.zeros(len(codes), codes.width)
    active = codes.active
    on[codes.rows[active], codes.indices[active]] = 1
    return on


def _earlier(
    own: Float[Tensor, "n c"], on: list[Tensor], bounds: list[int]
) -> Int[Tensor, "c p"]:
    """Rows that latents of one level share with those of each earlier one, in its own codes."""
    start, parts = 0, []
    for bound, fired in zip(bounds, on, strict=False):
        parts.append(own.T @ fired[:, start:bound])
        start = bound
    return torch.cat(parts, 1).round().to(torch.int32)


def _best(
    child: int,
    together: Int[Tensor, "s s"],
    fired: Int[Tensor, " s"],
    total: int,
    bounds: list[int],
    atoms: Float[Tensor, "s d"],
    least: float,
    cosine: float,
) -> Link | None:
    """The link to the latent of an earlier level that fits best."""
    before = max((bound for bound in bounds if bound <= child), default=0)
    if not before:
        return None
    both = together[child, :before].double()
    p_parent = both / fired[child]
    p_child = both / fired[:before].clamp(min=1)
    base = fired[:before] / total
    angles = atoms[:before] @ atoms[child]
    fits = (p_parent >= least) & (p_parent > p_child) & (p_parent > base) & (angles > cosine)
    if not bool(fits.any()):
        return None
    # of parents that fire always when the child does, the most specific one
    score = torch.where(fits, p_parent + 1e-3 * p_child, -1.0)
    parent = int(score.argmax())
    return Link(
        child, parent, float(p_parent[parent]), float(p_child[parent]), float(angles[parent])
    )
