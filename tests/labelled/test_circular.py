"""Rings, crosses and clouds: planted, and told apart."""

import math

import pytest
import torch
from torch import Tensor

from vision_sae.measures.labelled.circular import (
    circular_correlation,
    circularity,
    cluster,
    clusters,
    plane,
    ring,
)
from vision_sae.measures.labelled.rows import ImageRows
from vision_sae.sparse.codes import Codes

D, N = 16, 800


def of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ring_points(n: int = N) -> Tensor:
    angle = 2 * math.pi * torch.rand(n, generator=of(0))
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2, generator=of(1))


def test_a_ring_cannot_be_taken_apart() -> None:
    found = plane(ring_points())
    assert found.separability > 0.5 and found.mixture < 0.35


def test_two_independent_features_are_separable() -> None:
    found = plane(torch.rand(N, 2, generator=of(2)))
    assert found.separability < 0.1


def test_two_features_of_which_one_is_on_are_a_mixture() -> None:
    side = torch.rand(N, generator=of(3)) < 0.5
    size = 1 + torch.rand(N, generator=of(4))
    found = plane(torch.stack([size * side, size * ~side], 1))
    assert found.mixture > 0.45
    assert (1 - found.mixture) * found.separability < (1 - plane(ring_points()).mixture) * (
        plane(ring_points()).separability
    )


def clock() -> tuple[ImageRows, Tensor, Tensor]:
    """The first four latents are the hours 0, 3, 6, 9 of a ring in a plane; others lie about.

    Their atoms lean on a common direction, so that they cluster.
    """
    base = torch.eye(D)
    turn = torch.arange(4) * math.pi / 2
    atoms = torch.stack([turn.cos(), turn.sin()], 1) @ base[:2] + 1.5 * base[2]
    others = torch.nn.functional.normalize(base[3:15] + 0.3 * base[15], dim=1)
    angle = 2 * math.pi * torch.arange(N) / 24
    has = torch.arange(N) < 240
    near = (angle[:, None] - turn[None]).cos().clamp(min=0) * has[:, None]
    rest = (torch.rand(N, 12, generator=of(5)) < 0.2) * torch.rand(N, 12, generator=of(6))
    codes = torch.cat([near, rest * ~has[:, None]], 1)
    W = torch.cat([atoms / atoms.norm(dim=1, keepdim=True), others])
    x = codes @ W
    sparse = Codes.of_dense(codes * (codes > 1e-6))
    rows = ImageRows(x + 0.01 * torch.randn(x.shape, generator=of(7)), x, sparse, sparse, W)
    return rows, torch.where(has, angle, torch.nan), torch.arange(N) % 4 == 0


@pytest.mark.slow
def test_the_clock_is_found_as_a_ring() -> None:
    rows, angle, test = clock()
    found = circularity(rows, angle, test, draws=20)
    assert found.cluster.latents.tolist() == [0, 1, 2, 3]
    assert found.own.correlation > 0.95 and found.x.cosine > 0.95
    assert found.share_below >= 0.95


def test_clusters_are_atoms_that_lean_on_each_other() -> None:
    rows, _, _ = clock()
    assert [one.tolist() for one in clusters(rows.W_dec)][0] == [0, 1, 2, 3]
    assert clusters(torch.eye(4)) == []


def test_an_angle_that_is_not_there_is_not_read() -> None:
    x = torch.randn(N, D, generator=of(8))
    angle = 2 * math.pi * torch.rand(N, generator=of(9))
    found = ring(x, angle, torch.arange(N) % 4 == 0)
    assert abs(found.correlation) < 0.25 and abs(found.cosine) < 0.25


def test_circular_correlation_follows_a_shift_and_a_turn() -> None:
    angle = 2 * math.pi * torch.rand(50, generator=of(1))
    assert circular_correlation(angle, (angle + 1) % (2 * math.pi)) == pytest.approx(1)
    assert circular_correlation(angle, -angle) == pytest.approx(-1)


def test_few_images_are_nan_with_a_reason() -> None:
    rows, angle, test = clock()
    few = torch.where(torch.arange(N) < 12, angle, torch.nan)
    assert "10 are needed on each side" in ring(rows.x, few, test).reason
    quiet = cluster(rows, torch.tensor([15]))
    assert math.isnan(quiet.irreducible) and quiet.reason
