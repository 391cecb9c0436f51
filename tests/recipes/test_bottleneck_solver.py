"""The solver: optima proven by their gap, and the same as a slow solver's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from vision_sae.errors import ConfigError
from vision_sae.recipes.bottleneck.solver import (
    Problem,
    largest,
    solve_path,
    solve_support,
    strengths,
)


def problem(n: int = 120, s: int = 25, c: int = 3, seed: int = 0, **options: object) -> Problem:
    """Sparse positive codes; the class is that of the strongest of c concepts, mostly."""
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.standard_normal((n, s)) - 0.5, 0)
    X[:, :c] *= 3
    y = np.where(rng.random(n) < 0.1, rng.integers(0, c, n), X[:, :c].argmax(1))
    if options.get("loss") == "sigmoid":
        Y = (X[:, :c] + 0.3 * rng.standard_normal((n, c)) > 1).astype(float)
    else:
        Y = np.eye(c)[y]
    return Problem(csr_array(X), Y, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("rho", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_every_point_of_the_path_is_proven_optimal(rho: float, loss: str) -> None:
    some = problem(loss=loss, rho=rho)
    found = list(solve_path(some, strengths(some, 12), tolerance=1e-5))
    assert max(one.gap for one in found) <= 1e-5
    assert found[0].W.nnz == 0 and found[-1].W.nnz > found[3].W.nnz > 0


@pytest.mark.parametrize("rho", [0.5, 0.95])
def test_the_optimum_is_that_of_scikit_learns_saga(rho: float) -> None:
    some = problem(rho=rho)
    strength = 0.05 * largest(some)
    *_, mine = solve_path(some, [largest(some), strength], tolerance=1e-9)
    slow = LogisticRegression(
        solver="saga", l1_ratio=rho, C=1 / (some.n * strength), tol=1e-8, max_iter=50_000
    ).fit(some.X.tocsr(), some.Y.argmax(1))
    np.testing.assert_allclose(mine.W.toarray(), slow.coef_, atol=2e-4)
    difference = mine.b - slow.intercept_  # softmax does not see a shift of all
    np.testing.assert_allclose(difference, difference.mean(), atol=2e-3)


def test_several_labels_are_one_logistic_regression_each() -> None:
    some = problem(loss="sigmoid")
    strength = 0.05 * largest(some)
    *_, mine = solve_path(some, [largest(some), strength], tolerance=1e-9)
    for c in range(some.Y.shape[1]):
        slow = LogisticRegression(
            solver="saga", l1_ratio=0.95, C=1 / (some.n * strength), tol=1e-8, max_iter=50_000
        ).fit(some.X, some.Y[:, c])
        np.testing.assert_allclose(mine.W.toarray()[c], slow.coef_[0], atol=2e-4)
        np.testing.assert_allclose(mine.b[c], slow.intercept_[0], atol=2e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.2, 1.0), st.floats(0.02, 0.9))
def test_no_other_weights_are_better_by_more_than_the_gap(
    seed: int, rho: float, share: float
) -> None:
    some = problem(n=40, s=8, seed=seed, rho=rho)
    *_, found = solve_path(some, [largest(some), share * largest(some)], tolerance=1e-4)
    null = some.losses(np.broadcast_to(some.start(), some.Y.shape))[0]
    rng = np.random.default_rng(seed)
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        W = found.W.toarray() + scale * rng.standard_normal((3, 8))
        b = found.b + scale * rng.standard_normal(3)
        other = some.losses(some.X @ W.T + b)[0] + found.strength * some.penalty(W)
        assert other >= found.objective - found.gap * null - 1e-12


def test_at_the_largest_strength_no_concept_is_used_and_just_below_one_is() -> None:
    some = problem()
    top = largest(some)
    first, second = solve_path(some, [top, 0.97 * top])
    assert first.W.nnz == 0 and 1 <= second.W.nnz <= 3


def test_a_refit_keeps_the_support_and_lowers_the_loss() -> None:
    some = problem()
    *_, found = solve_path(some, [largest(some), 0.3 * largest(some)])
    W, b = solve_support(some, found)
    assert ((W.toarray() != 0) == (found.W.toarray() != 0)).all()
    before = some.losses(some.X @ found.W.toarray().T + found.b)[0]
    assert some.losses(some.X @ W.toarray().T + b)[0] < before


def test_an_l1_share_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"l1_ratio must be above 0 and at most 1; got 0"):
        problem(rho=0.0)
