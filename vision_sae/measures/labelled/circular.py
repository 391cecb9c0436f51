"""Do several latents together make a circle? Multi-dimensional features (Engels et al. 2024).

"Not All Language Model Features Are One-Dimensionally Linear" (arXiv 2405.14860): clusters of
atoms, what each cluster reconstructs, and whether a plane of it can be taken apart into
one-dimensional features. Hours of clock faces are the circle that is known.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vision_sae.measures.labelled.rows import ImageRows, columns
from vision_sae.measures.stability import cosines

NEIGHBOURS, COSINE, MOST = 2, 0.5, 1000  # of an atom; of a cluster
DIMENSIONS, ANGLES, CELLS = 5, 100, 10
EPSILON, OFFSETS, ROWS = 0.1, 64, 1000
LEAST = 50  # rows on which a cluster fires


class Plane(NamedTuple):
    """How a cloud of points in a plane is made up; both are far from 0 and 1 for a ring.

    separability: bits that remain between two coordinates in the best rotation, less what shuffled
    points have. mixture: the largest share of points within epsilon of a line, relative to their
    spread around it.
    """

    separability: float
    mixture: float


@dataclass(frozen=True)
class Cluster:
    """Latents whose atoms hang together; `irreducible` is the mean of (1 - mixture) separability.

    rows: images on which one of them fires; NaN, with a reason, when they are too few.
    """

    latents: Int[Tensor, " c"]
    rows: int
    planes: tuple[Plane, ...]
    irreducible: float
    reason: str = ""


def clusters(W_dec: Float[Tensor, "s d"]) -> list[Int[Tensor, " c"]]:
    """Components of the graph of each atom with its two nearest of cosine above .5; 2 to 1,000."""
    near = cosines(W_dec, W_dec).fill_diagonal_(-1).topk(min(NEIGHBOURS, len(W_dec) - 1), dim=1)
    leader = list(range(len(W_dec)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for i, (values, others) in enumerate(zip(near.values, near.indices, strict=True)):
        for other in others[values > COSINE].tolist():
            leader[find(i)] = find(other)
    groups: dict[int, list[int]] = {}
    for i in range(len(W_dec)):
        groups.setdefault(find(i), []).append(i)
    return [torch.tensor(g) for g in groups.values() if 2 <= len(g) <= MOST]


def cluster(rows: ImageRows, latents: Int[Tensor, " c"], *, seed: int = 0) -> Cluster:
    """What the latents reconstruct, x_c = sum f_i W_i, on the images where one of them fires.

    PCA to five dimensions, then the planes (1, 2), (2, 3), (3, 4), (4, 5).
    """
    found = reconstructed(rows, latents)
    points = found.points
    if len(points) < LEAST:
        why = f"the cluster fires on {len(points)} images; {LEAST} are needed"
        return Cluster(latents, len(points), (), math.nan, why)
    centred = (points - points.mean(0)).double()
    _, size, axes = torch.linalg.svd(centred, full_matrices=False)
    rank = int((size > 1e-6 * size[0]).sum())
    projected = centred @ axes[: min(DIMENSIONS, rank)].T
    planes = tuple(plane(projected[:, i : i + 2], seed) for i in range(projected.shape[1] - 1))
    if not planes:
        why = "what the cluster reconstructs is one-dimensional"
        return Cluster(latents, len(points), (), math.nan, why)
    score = sum((1 - p.mixture) * p.separability for p in planes) / len(planes)
    return Cluster(latents, len(points), planes, score)


class Points(NamedTuple):
    points: Float[Tensor, "m d"]
    fires: Bool[Tensor, " n"]


def reconstructed(rows: ImageRows, latents: Int[Tensor, " c"]) -> Points:
    """What some latents add to the reconstruction, on the images where one of them fires."""
    codes = columns(rows.mean, latents)
    fires = (codes != 0).any(1)
    return Points(codes[fires] @ rows.W_dec[latents], fires)


def plane(points: Float[Tensor, "m 2"], seed: int = 0) -> Plane:
    """Separability and mixture of a cloud of points, at most 1,000 of them."""
    generator = torch.Generator().manual_seed(seed)
    some = points[torch.randperm(len(points), generator=generator)[:ROWS]].double()
    return Plane(separability(some, generator), mixture(some))


def separability(points: Float[Tensor, "m 2"], generator: torch.Generator) -> float:
    """min over rotations of I(x; y) in bits, of a 10 x 10 histogram, less that of shuffled y.

    The estimate is biased upwards, the more so the fewer points; what falls below 0 is 0.
    """
    angle = torch.arange(ANGLES).double() * (math.pi / ANGLES)
    turned = _turned(points, angle)
    bits = _information(turned[:, 0], turned[:, 1])
    best = int(bits.argmin())
    mixed = torch.randperm(len(points), generator=generator)
    chance = _information(turned[best, None, 0], turned[best, None, 1][:, mixed])
    return max(0.0, float(bits[best] - chance[0]))


def _turned(points: Tensor, angle: Float[Tensor, " a"]) -> Float[Tensor, "a 2 m"]:
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y = points.T
    return torch.stack([cos * x + sin * y, cos * y - sin * x], 1)


def _information(x: Float[Tensor, "a m"], y: Float[Tensor, "a m"]) -> Float[Tensor, " a"]:
    place = _cell(x) * CELLS + _cell(y)
    counts = torch.zeros(len(x), CELLS**2, dtype=torch.float64)
    p = counts.scatter_add_(1, place, torch.ones_like(x)) / x.shape[1]
    p = p.view(-1, CELLS, CELLS)
    return _h(p.sum(2)) + _h(p.sum(1)) - _h(p.flatten(1))


def _cell(x: Float[Tensor, "a m"]) -> Int[Tensor, "a m"]:
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return ((x - low) / (high - low).clamp(min=1e-12) * CELLS).long().clamp(max=CELLS - 1)


def _h(p: Float[Tensor, "a c"]) -> Float[Tensor, " a"]:
    return -(p * p.clamp(min=1e-300).log2()).sum(1)


def mixture(points: Float[Tensor, "m 2"]) -> float:
    """max over v, c of P(|v . x + c| < .1 sqrt(E (v . x + c)^2)), over 100 angles of v.

    Published as an ascent on a soft indicator; in a plane a grid finds the maximum: c puts the line
    through a quantile of the points.
    """
    angle = torch.arange(ANGLES).double() * (math.pi / ANGLES)
    along = _turned(points, angle)[:, 0]
    levels = torch.linspace(0, 1, OFFSETS, dtype=torch.float64)
    best = 0.0
    for line in along:
        z = line[None] - line.quantile(levels)[:, None]
        inside = z.abs() < EPSILON * z.square().mean(1, keepdim=True).sqrt()
        best = max(best, float(inside.double().mean(1).max()))
    return best


@dataclass(frozen=True)
class Ring:
    """How well the angle of a label can be read: mean cosine of error, 1 for a perfect ring, 0 by
    chance.

    correlation: the circular correlation of read and true angle, which is of no use where angles
    are spread so evenly that they have no mean. n: held-out images. NaN, with a
    reason, for fewer than 10 on either side.
    """

    cosine: float
    correlation: float
    n: int
    reason: str = ""


def ring(
    x: Float[Tensor, "n d"], angle: Float[Tensor, " n"], test: Bool[Tensor, " n"],
    *, components: int = 10, ridge: float = 1e-2,
) -> Ring:  # fmt: skip
    """Fit (cos, sin) of an angle linearly on train, from the first principal components of x.

    As the paper's probes for days and months. `angle` is NaN where an image has none. Correlation:
    sum sin(a - a') sin(b - b') / sqrt(sum sin^2 sum sin^2) around circular means.
    """
    has = ~angle.isnan()
    fit, held = has & ~test, has & test
    if int(fit.sum()) < 10 or int(held.sum()) < 10:
        sizes = f"{int(fit.sum())} and {int(held.sum())}"
        why = f"{sizes} images have an angle; 10 are needed on each side"
        return Ring(math.nan, math.nan, int(held.sum()), why)
    middle = x[fit].double().mean(0)
    axes = torch.linalg.svd(x[fit].double() - middle, full_matrices=False)[2][:components]
    z = (x.double() - middle) @ axes.T
    goal = torch.stack([angle.double().cos(), angle.double().sin()], 1)
    centre = goal[fit].mean(0)
    gram = z[fit].T @ z[fit]
    gram += ridge * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram))
    weight = torch.linalg.solve(gram, z[fit].T @ (goal[fit] - centre))
    read = z[held] @ weight + centre
    told = torch.atan2(read[:, 1], read[:, 0])
    truth = angle[held].double()
    return Ring(
        float((told - truth).cos().mean()), circular_correlation(told, truth), int(held.sum())
    )


def circular_correlation(a: Float[Tensor, " m"], b: Float[Tensor, " m"]) -> float:
    """Jammalamadaka and SenGupta's; NaN when an angle does not vary."""
    a, b = (one - torch.atan2(one.sin().mean(), one.cos().mean()) for one in (a, b))
    scale = (a.sin().square().sum() * b.sin().square().sum()).sqrt()
    return float((a.sin() * b.sin()).sum() / scale) if float(scale) > 0 else math.nan


@dataclass(frozen=True)
class Circularity:
    """Whether the latents of a label with angles make a ring.

    x, x_hat: the angle read off the activations (the ceiling) and the reconstruction. own: off what
    the label's cluster reconstructs. cluster: its planes. share_below: how many of random clusters
    of the same size have a smaller `irreducible`; above .95 is remarkable.
    """

    x: Ring
    x_hat: Ring
    own: Ring
    cluster: Cluster
    share_below: float
    controls: int
    reason: str = ""


def circularity(
    rows: ImageRows, angle: Float[Tensor, " n"], test: Bool[Tensor, " n"],
    *, draws: int = 100, seed: int = 0,
) -> Circularity:  # fmt: skip
    """Of the cluster of atoms with most of its activity on images that have an angle.

    With hours h of clock faces: angle = 2 pi h / 12. Without such a cluster, the two latents that
    fire most on those images are taken. Chosen on train images.
    """
    has = ~angle.isnan()
    latents = _clock_latents(rows, has & ~test, ~has & ~test)
    found = cluster(rows, latents, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    alive = rows.mean.fired().nonzero()[:, 0]
    scores = []
    for _ in range(draws):
        drawn = alive[torch.randperm(len(alive), generator=generator)[: len(latents)]]
        score = cluster(rows, drawn, seed=seed).irreducible
        scores += [] if math.isnan(score) else [score]
    below = sum(s < found.irreducible for s in scores) / len(scores) if scores else math.nan
    below = math.nan if math.isnan(found.irreducible) else below
    part = columns(rows.mean, latents) @ rows.W_dec[latents]
    x, x_hat, own = (ring(v, angle, test) for v in (rows.x, rows.x_hat, part))
    return Circularity(x, x_hat, own, found, below, len(scores), found.reason)


def _clock_latents(
    rows: ImageRows, has: Bool[Tensor, " n"], lacks: Bool[Tensor, " n"]
) -> Int[Tensor, " c"]:
    """The cluster whose latents fire on the images that have an angle, and on others rarely."""
    on = torch.stack([has, lacks], 1)[rows.mean.rows].float()
    counts = torch.zeros(rows.mean.width, 2).index_add(0, rows.mean.indices, on)
    rates = counts / torch.stack([has.sum(), lacks.sum()]).clamp(min=1)
    gain = rates[:, 0] - rates[:, 1]
    best = int(gain.argmax())
    for one in clusters(rows.W_dec):
        if best in one.tolist():
            return one
    return gain.argsort(descending=True)[:2]
