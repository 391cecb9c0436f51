"""What is measured, with one definition each.

For a target concept of factor F (object or style), G being the other factor:
UA    share of the pictures asked with the target that the judge does not read as it
IRA   accuracy on F for prompts with other values of F
CRA   accuracy on G; every pair of object and style weighs the same, pairs with the target too
Published variants beside them: `cra_saeuron` (styles: objects on style-less pictures only; objects:
styles on styled ones, the erased object's too), `cra_unlearncanvas` (styles: objects on styled
pictures, without style-less ones; objects as cra_saeuron), `ira_styled` (without style-less
pictures, which UnlearnCanvas counts as no style).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.recipes.unlearn.benchmark.world import PLAIN, Ask, other_factor, parse

Pictures = UInt8[Tensor, "n 3 h w"]
Scores = dict[str, float]
SAME = 8  # of 255: two pixels that differ by no more are the same to the eye


# ---- from what the judge reads


def accuracy(asks: Sequence[Ask], seen: Sequence[dict[str, str]], factor: str) -> float:
    """Share of pictures that show what was asked; NaN for none."""
    hits = [ask.value(factor) == one[factor] for ask, one in zip(asks, seen, strict=True)]
    return sum(hits) / len(hits) if hits else float("nan")


def outcome(
    concept: str,
    targets: Sequence[Ask],
    seen_targets: Sequence[dict[str, str]],
    others: Sequence[Ask],
    seen_others: Sequence[dict[str, str]],
    pairs: tuple[int, int] = (1, 1),
) -> Scores:
    """UA, IRA, CRA and their published variants, in 0..1; those of no pictures are left out.

    `pairs` is how many pairs of object and style hold the target and how many do not: by it the
    two samples are weighed in CRA. Raises DataError when a sample is empty or of the wrong kind.
    """
    _check(concept, targets, others)
    factor = parse(concept)[0]
    rest = other_factor(factor)
    at_targets = accuracy(targets, seen_targets, rest)
    at_others = accuracy(others, seen_others, rest)
    scores = {
        "ua": 1 - accuracy(targets, seen_targets, factor),
        "ira": accuracy(others, seen_others, factor),
        "cra": (pairs[0] * at_targets + pairs[1] * at_others) / sum(pairs),
        "cra_targets": at_targets,
        "cra_others": at_others,
    }
    styled, plain = _by_style(others, seen_others)
    mine_styled, mine_plain = _by_style(targets, seen_targets)
    all_styled, all_plain = _joined(styled, mine_styled), _joined(plain, mine_plain)
    published = all_plain if factor == "style" else all_styled
    scores["ira_styled"] = accuracy(*styled, factor)
    scores["cra_saeuron"] = accuracy(*published, rest)
    scores["cra_unlearncanvas"] = accuracy(*all_styled, rest)
    scores["average"] = (scores["ua"] + scores["ira"] + scores["cra"]) / 3
    return {name: score for name, score in scores.items() if score == score}


def _check(concept: str, targets: Sequence[Ask], others: Sequence[Ask]) -> None:
    if not targets or not others:
        raise DataError(
            f"{concept}: {len(targets)} pictures with it and {len(others)} without; both are needed"
        )
    wrong = [a.text for a in targets if not a.holds(concept)]
    wrong += [a.text for a in others if a.holds(concept)]
    if wrong:
        raise DataError(f"{concept}: pictures on the wrong side, such as {wrong[0]!r}")


Judged = tuple[list[Ask], list[dict[str, str]]]


def _by_style(asks: Sequence[Ask], seen: Sequence[dict[str, str]]) -> tuple[Judged, Judged]:
    """(styled, plain)."""
    both = list(zip(asks, seen, strict=True))
    styled = [one for one in both if one[0].style != PLAIN]
    plain = [one for one in both if one[0].style == PLAIN]
    return _apart(styled), _apart(plain)


def _apart(both: Sequence[tuple[Ask, dict[str, str]]]) -> Judged:
    return [ask for ask, _ in both], [seen for _, seen in both]


def _joined(a: Judged, b: Judged) -> Judged:
    return a[0] + b[0], a[1] + b[1]


# ---- distances between sets, in a feature space


def frechet(a: Float[Tensor, "n e"], b: Float[Tensor, "m e"]) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^1/2); biased upwards for few pictures.

    Raises DataError for fewer than two on a side.
    """
    _check_sizes(a, b)
    a, b = a.double(), b.double()
    first, second = a.T.cov(), b.T.cov()
    root = _root(first)
    middle = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(means + first.trace() + second.trace() - 2 * middle))


def _root(matrix: Float[Tensor, "e e"]) -> Float[Tensor, "e e"]:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def kernel_distance(
    a: Float[Tensor, "n e"], b: Float[Tensor, "m e"], paired: bool = False
) -> float:
    """Squared MMD with the kernel (x.y / e + 1)^3, unbiased: may be a little below 0.

    Features are scaled to length sqrt(e), as unit ones would hardly bend the kernel. Where a[i] and
    b[i] are of the same seed they are `paired`: not independent, so left out between the sets too.
    Raises DataError for fewer than two on a side, or for pairs of sets that differ in size.
    """
    _check_sizes(a, b)
    if paired and len(a) != len(b):
        raise DataError(f"pairs need as many on each side; got {len(a)} and {len(b)}")
    width = a.shape[1]
    a, b = (F.normalize(x.double(), dim=1) * width**0.5 for x in (a, b))

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / width + 1) ** 3

    within = [_off_diagonal(kernel(x, x)) for x in (a, b)]
    between = _off_diagonal(kernel(a, b)) if paired else kernel(a, b).mean()
    return float(within[0] + within[1] - 2 * between)


def _off_diagonal(matrix: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    n = len(matrix)
    return (matrix.sum() - matrix.trace()) / (n * (n - 1))


def _check_sizes(a: Tensor, b: Tensor) -> None:
    if min(len(a), len(b)) < 2:
        raise DataError(f"two pictures on each side at least; got {len(a)} and {len(b)}")


# ---- against the unedited picture of the same seed


def layer_distance(
    a: Sequence[Float[Tensor, "n ..."]], b: Sequence[Float[Tensor, "n ..."]]
) -> Float[Tensor, " n"]:
    """LPIPS-like, without learnt weights, of layers [n t d]: each layer's tokens made unit, squared
    differences summed over d, mean over tokens, mean over layers. 0 for equals, 4 at most.
    """
    parts = [
        (F.normalize(x, dim=-1) - F.normalize(y, dim=-1)).square().sum(-1).mean(-1)
        for x, y in zip(a, b, strict=True)
    ]
    return torch.stack(parts).mean(0)


def unchanged(a: Pictures, b: Pictures, tolerance: int = SAME) -> Float[Tensor, " n"]:
    """Share of each picture's pixels where no channel differs by more than the tolerance."""
    apart = (a.int() - b.int()).abs().amax(1)
    return (apart <= tolerance).float().mean((1, 2))


# ---- artefacts


def nearest(
    a: Float[Tensor, "n e"], b: Float[Tensor, "m e"] | None = None, block: int = 512
) -> Float[Tensor, " n"]:
    """Distance of each of `a` to the nearest of `b`; without `b` to the nearest other of `a`."""
    found = []
    for start in range(0, len(a), block):
        part = torch.cdist(a[start : start + block], a if b is None else b)
        if b is None:
            rows = torch.arange(len(part))
            part[rows, rows + start] = torch.inf
        found.append(part.amin(1))
    return torch.cat(found)


def strange(
    features: Float[Tensor, "n e"], clean: Float[Tensor, "m e"], quantile: float = 0.99
) -> Bool[Tensor, " n"]:
    """Farther from every clean sample than `quantile` of clean samples are from each other.

    Raises DataError for fewer than two clean samples.
    """
    _check_sizes(clean, clean)
    limit = nearest(clean).quantile(quantile)
    return nearest(features, clean) > limit
