"""Which latents are parts of which: a tree over the levels of a nested dictionary.

A latent's level is the smallest trained prefix that holds it. A child fires (almost) only where its
parent does, and the parent also elsewhere; shape key: s latents, d width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.sparse.codes import Codes

ROWS = 4096  # that are made dense at a time


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
    codes: Codes,
    atoms: Float[Tensor, "s d"],
    bounds: Sequence[int],
    *,
    least: float = 0.5,
    lift: float = 2.0,
    cosine: float = 0.1,
    rows: int = 5,
) -> Hierarchy:
    """The tree that the latents of a nested dictionary form, from their codes (`own_codes`).

    A latent's parent is the latent of an earlier level with the largest P(parent | child), if that
    is at least `least`, above P(child | parent), `lift` times what independence would give (so that
    latents that fire on nearly everything are nobody's parents), and the atoms' cosine is above
    `cosine`. Latents that fire on fewer than `rows` rows have none.
    """
    together, fired = _together(codes)
    unit = F.normalize(atoms.detach(), dim=1)
    links = {}
    for child in (fired >= rows).nonzero()[:, 0].tolist():
        before = max((bound for bound in bounds if bound <= child), default=0)
        link = _best(child, before, together, fired, len(codes), unit, (least, lift, cosine))
        if link is not None:
            links[child] = link
    return Hierarchy(list(bounds), fired.tolist(), len(codes), links)


def _together(codes: Codes) -> tuple[Int[Tensor, "s s"], Int[Tensor, " s"]]:
    """On how many rows each pair of latents fires, and each alone; dense [s s]."""
    s = codes.width
    together = torch.zeros(s, s, dtype=torch.int32)
    for first in range(0, len(codes), ROWS):
        some = codes.rows_at(slice(first, first + ROWS))
        on = torch.zeros(len(some), s)
        on[some.rows[some.active], some.indices[some.active]] = 1
        together += (on.T @ on).round().to(torch.int32)
    return together, together.diagonal().long()


def _best(
    child: int,
    before: int,
    together: Int[Tensor, "s s"],
    fired: Int[Tensor, " s"],
    total: int,
    atoms: Float[Tensor, "s d"],
    bars: tuple[float, float, float],
) -> Link | None:
    """The link to the one of the latents `before` that fits best; bars: least, lift, cosine."""
    if not before:
        return None
    both = together[child, :before].double()
    p_parent = both / fired[child]
    p_child = both / fired[:before].clamp(min=1)
    least, lift, cosine = bars
    base = fired[:before] / total
    angles = atoms[:before] @ atoms[child]
    fits = (
        (p_parent >= least) & (p_parent > p_child) & (p_parent >= lift * base) & (angles > cosine)
    )
    if not bool(fits.any()):
        return None
    # of parents that fire always when the child does, the most specific one
    score = torch.where(fits, p_parent + 1e-3 * p_child, -1.0)
    parent = int(score.argmax())
    return Link(
        child, parent, float(p_parent[parent]), float(p_child[parent]), float(angles[parent])
    )
