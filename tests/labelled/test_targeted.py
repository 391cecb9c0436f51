"""TPP, SCR and absorption where the answer was planted."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.measures.labelled.absorption import absorption, main_latents
from vision_sae.measures.labelled.rows import ImageRows
from vision_sae.measures.labelled.targeted import pairs, scr, tpp
from vision_sae.measures.labelled.task import Task, properties, task
from vision_sae.sparse.codes import Codes

D = 32


def directions(count: int, seed: int = 5) -> Tensor:
    """Orthogonal unit vectors."""
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(D, D, generator=g))[0][:count]


def rows_of(codes: Tensor, atoms: Tensor, noise: float = 0.02) -> ImageRows:
    x_hat = codes @ atoms
    g = torch.Generator().manual_seed(8)
    sparse = Codes.of_dense(codes)
    x = x_hat + noise * torch.randn(x_hat.shape, generator=g)
    return ImageRows(x, x_hat, sparse, sparse, atoms)


def factors(n: int = 900) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(0)
    kind, style = torch.randint(3, (n,), generator=g), torch.randint(3, (n,), generator=g)
    both = zip(kind.tolist(), style.tolist(), strict=True)
    return [{"kind": "abc"[k], "style": "xyz"[s]} for k, s in both]


@pytest.fixture(scope="module")
def grid() -> Task:
    return task(properties(factors()), torch.arange(900) % 4 == 0)


def test_ablating_the_latents_of_a_class_hurts_its_probe_and_no_other(grid: Task) -> None:
    hot = grid.members.float()
    found = tpp(rows_of(hot, directions(6)), grid, "kind")
    assert found.score[2] > 0.4  # from 1 to chance
    assert abs(found.random[2]) < 0.25


def test_a_latent_that_serves_all_classes_is_no_targeted_perturbation(grid: Task) -> None:
    """Every latent is on for every image: what is ablated for one hits the others as well."""
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    rows = rows_of(grid.members.float() @ turn, turn.T @ directions(6))
    single = tpp(rows_of(grid.members.float(), directions(6)), grid, "kind").score[2]
    assert tpp(rows, grid, "kind").score[2] < 0.6 * single


@pytest.mark.slow
def test_ablating_the_spurious_latent_frees_a_misled_probe(grid: Task) -> None:
    """The style is half as strong again as the kind, so a probe that may uses it."""
    atoms = directions(6)
    strength = torch.tensor([1.5 if f == "style" else 1.0 for f, _ in grid.names])
    found = scr(rows_of(grid.members * strength, atoms, noise=0.02), grid, "kind", "style")
    assert found.n == 9
    assert found.score[2] > 0.45
    assert found.random[2] < found.score[2] - 0.3


def test_pairs_are_those_with_all_four_combinations(grid: Task) -> None:
    found = pairs(grid, "kind", "style", most=4)
    assert len(found) == 4
    assert all(grid.names[i][0] == "kind" for p in found for i in p.target)


def test_what_cannot_be_ablated_is_nan_with_a_reason(grid: Task) -> None:
    dead = rows_of(torch.zeros(900, 6), directions(6))
    assert tpp(dead, grid, "kind").reason == "no latent fires"
    assert math.isnan(scr(dead, grid, "kind", "style").score[2])
    small = task(properties(factors(60), least=5), torch.arange(60) % 4 == 0, least=3)
    few = rows_of(small.members.float(), directions(6))
    assert "40 train images in all four combinations" in scr(few, small, "kind", "style").reason
    lone = small.only(small.columns("kind")[:1])
    assert "kind has one value" in tpp(few, lone, "kind").reason


CHILDREN = 20


def nested(absorbed: bool) -> tuple[ImageRows, Task]:
    """Parents p and q of 20 children each, all with latents; a child in 20 is absorbed, if any.

    An absorbed child's atom holds its parent's direction too, and the parent's latent is off.
    """
    n = 2 * CHILDREN * 24
    about = [
        {"child": f"{'pq'[i % 2]}{i // 2 % CHILDREN:02}", "parent": "pq"[i % 2]} for i in range(n)
    ]
    known = task(properties(about), torch.arange(n) // (2 * CHILDREN) % 4 == 0)
    parent = known.members[:, known.columns("parent")].float()
    child = known.members[:, known.columns("child")].float()
    base = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(2)))[0]
    atoms = base[: 2 + 2 * CHILDREN].clone()
    codes = torch.cat([parent, child], 1)
    if absorbed:
        codes[child[:, 0] > 0, 0] = 0
        atoms[2] = base[2] + base[0]  # not a unit vector: it does the work of both
    return rows_of(codes, atoms, noise=0.01), known


def test_absorption_is_the_planted_share() -> None:
    rows, known = nested(absorbed=True)
    found = absorption(rows, known, "parent", torch.zeros(64))
    assert found.by_class["p"] == pytest.approx(1 / CHILDREN, abs=0.01)
    assert found.by_class["q"] == 0.0
    assert found.full == pytest.approx(1 / CHILDREN / 2, abs=0.005)


def test_without_absorption_there_is_none() -> None:
    rows, known = nested(absorbed=False)
    found = absorption(rows, known, "parent", torch.zeros(64))
    assert (found.full, found.fraction) == (0.0, 0.0)
    p = known.columns("parent")[0]
    assert main_latents(rows, known.only([p])).tolist() == [0]


def test_a_super_class_that_no_probe_reads_is_named() -> None:
    rows, known = nested(absorbed=False)
    noise = ImageRows(torch.randn(rows.x.shape), rows.x_hat, rows.codes, rows.mean, rows.W_dec)
    found = absorption(noise, known, "child", torch.zeros(64))
    assert math.isnan(found.fraction) and found.reason == "no child has a usable probe"
    assert "0.6 is needed" in found.left_out["p00"]
