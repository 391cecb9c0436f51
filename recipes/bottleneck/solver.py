"""Elastic-net logistic regression on sparse codes, solved to a certified optimum.

    min over W, b of  1/n sum_i loss(y_i, W x_i + b) + strength (rho |W|_1 + (1 - rho)/2 |W|_2^2)

The loss is softmax cross-entropy where each row has one class, the sum of binary cross-entropies
where it may have several. The intercept b is free. Rows are never made dense.

scipy's L-BFGS-B minimises over W = P - M with P, M >= 0, on a working set of entries of W: those
that the strong rule keeps (Tibshirani et al. 2012, eq. 7) and those whose optimality condition is
then found violated. What proves a solution is its duality gap over all entries, which bounds how
far the objective is from its minimum.

Shape key: n rows, s concepts, c classes, e entries of the working set, a concepts in it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vision_sae.errors import ConfigError

Loss = Literal["softmax", "sigmoid"]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
ROUNDS, ITERATIONS, MEMORY = 20, 1000, 20  # of working sets; of L-BFGS-B in each; its memory
SMALL = 1e-9  # l1 share of a penalty that is l2 alone


@dataclass(frozen=True)
class Solution:
    """The optimum at one strength: W [c s] as a scipy csr_array, b [c].

    `gap` bounds how far the objective is above its minimum, as a share of the mean loss without
    any concept.
    """

    strength: float
    W: Any
    b: Array
    objective: float
    gap: float
    iterations: int
    rho: float = 1.0
    scale: str = ""  # the units of the codes that were solved for


@dataclass(frozen=True)
class Problem:
    """Rows X [n s] as a scipy csr_array, targets Y [n c] (one-hot or multi-hot), and the penalty.

    Raises ConfigError for a `rho` (the l1 share of the penalty) outside (0, 1].
    """

    X: Any
    Y: Array
    loss: Loss = "softmax"
    rho: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ConfigError(f"l1_ratio must be above 0 and at most 1; got {self.rho}")

    @property
    def n(self) -> int:
        return len(self.Y)

    def start(self) -> Array:
        """The intercept that is best without concepts."""
        share = np.clip(self.Y.mean(0), 1e-6, 1 - 1e-6)
        b: Array = np.log(share) if self.loss == "softmax" else np.log(share / (1 - share))
        return b

    def losses(self, z: Array) -> tuple[float, Array]:
        """Mean loss of logits z [n c], and the residual [n c]: probabilities minus targets."""
        if self.loss == "softmax":
            top = z.max(1, keepdims=True)
            p = np.exp(z - top)
            total = p.sum(1, keepdims=True)
            p /= total
            value = (np.log(total).sum() + top.sum() - np.vdot(self.Y, z)) / self.n
        else:
            value = (np.logaddexp(0, z).sum() - np.vdot(self.Y, z)) / self.n
            p = 0.5 * (1 + np.tanh(0.5 * z))
        p -= self.Y
        return float(value), p

    def conjugate(self, u: Array) -> float:
        """Mean convex conjugate of the loss at u [n c]; finite as u + Y are probabilities."""
        p = np.clip(u + self.Y, 0, 1)
        total = _xlogx(p).sum()
        if self.loss == "sigmoid":
            total += _xlogx(1 - p).sum()
        return float(total) / self.n

    def penalty(self, w: Array) -> float:
        return float(self.rho * np.abs(w).sum() + (1 - self.rho) / 2 * np.vdot(w, w))

    def penalty_conjugate(self, v: Array) -> float:
        """At v whose entries are at most rho where rho is 1."""
        if self.rho == 1:
            return 0.0
        over = np.maximum(np.abs(v) - self.rho, 0)
        return float(np.vdot(over, over) / (2 * (1 - self.rho)))


def _xlogx(p: Array) -> Array:
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)


def largest(problem: Problem) -> float:
    """The smallest strength at which no concept is used."""
    return float(np.abs(_State.of(problem).gradient).max()) / problem.rho


def strengths(problem: Problem, count: int = 40, ratio: float = 1e-3) -> Array:
    """From where the first concept comes in down to `ratio` of it, evenly in logarithms."""
    return largest(problem) * np.logspace(0, np.log10(ratio), count)


@dataclass
class _State:
    """Weights, and what the loss says of them: W and gradient [c s] or [e], residual [n c]."""

    W: Array
    b: Array
    value: float
    residual: Array
    gradient: Array

    @classmethod
    def of(cls, problem: Problem, W: Array | None = None, b: Array | None = None) -> "_State":
        """With the best intercept for these weights, from a start near it."""
        W = np.zeros((problem.Y.shape[1], problem.X.shape[1])) if W is None else W
        b = problem.start() if b is None else b
        used = np.flatnonzero(W.any(0))
        z = problem.X[:, used] @ W[:, used].T if len(used) else np.zeros_like(problem.Y)
        b, value, residual = _best_intercept(problem, z, b)
        gradient = np.ascontiguousarray((problem.X.T @ residual).T) / problem.n
        return cls(W, b, value, residual, gradient)


def solve_path(
    problem: Problem,
    grid: Sequence[float] | Array,
    *,
    tolerance: float = 1e-4,
    tell: Callable[[int], None] = lambda solved: None,
) -> Iterator[Solution]:
    """The optimum at each strength of a falling grid, each started from the one before.

    `tolerance` is the largest relative duality gap of a solution; one that is not reached is told
    by the solution's own `gap`.
    """
    state, columns, before = _State.of(problem), problem.X.tocsc(), largest(problem)
    null = state.value
    for strength in map(float, grid):
        work = (state.W != 0) | (np.abs(state.gradient) >= problem.rho * (2 * strength - before))
        iterations, gap = 0, duality_gap(problem, state, strength) / null
        for _ in range(ROUNDS):
            if gap <= tolerance:
                break
            work |= np.abs(state.gradient) > problem.rho * strength
            piece = _Piece(problem, columns, work, strength, tolerance * null / 2)
            W, b, used = piece.solved(state)
            state, iterations = _State.of(problem, W, b), iterations + used
            gap = duality_gap(problem, state, strength) / null
        objective = state.value + strength * problem.penalty(state.W)
        W = _sparse(state.W)
        yield Solution(strength, W, state.b, objective, gap, iterations, problem.rho)
        before = strength
        tell(1)


def gap_of(problem: Problem, W: Array, b: Array, strength: float) -> float:
    """The relative duality gap of any dense weights [c s], say another solver's."""
    null = _State.of(problem).value
    return duality_gap(problem, _State.of(problem, W, b), strength) / null


def solve_support(problem: Problem, solution: Solution, ridge: float = 0.01) -> tuple[Any, Array]:
    """Weights on a solution's support alone, with an l2 penalty of `ridge` times its strength in
    place of the elastic net, and the intercept."""
    work = solution.W.toarray() != 0
    plain = replace(problem, rho=SMALL)
    strength = ridge * solution.strength
    start = _State.of(plain, solution.W.toarray(), solution.b)
    W, b, _ = _Piece(plain, problem.X.tocsc(), work, strength, 1e-6 * start.value).solved(start)
    return _sparse(W), b


def _sparse(W: Array) -> Any:
    from scipy.sparse import csr_array

    return csr_array(W)


def duality_gap(problem: Problem, state: _State, strength: float) -> float:
    """Objective minus a lower bound of its minimum, from the residual as a dual point.

    With r the residual, u = t r is feasible for t in [0, 1], as the best intercept makes the mean
    of r zero; where rho is 1, |X'u|/n must not exceed the strength either.
    """
    W, g = state.W, state.gradient
    peak = float(np.abs(g).max(initial=0))
    shrunk = min(1.0, problem.rho * strength / peak) if peak else 1.0
    gaps = []
    for t in {shrunk} if problem.rho == 1 else {shrunk, 1.0}:
        match = 0.0  # at the residual itself, loss and conjugate meet
        if t < 1:
            inner = float(np.vdot(W, g) + state.b @ state.residual.mean(0))
            match = state.value + problem.conjugate(t * state.residual) - t * inner
        dual = problem.penalty_conjugate(t * g / strength)
        gaps.append(match + strength * (problem.penalty(W) + dual) + t * float(np.vdot(W, g)))
    return max(min(gaps), 0.0)


def _best_intercept(problem: Problem, z: Array, b: Array) -> tuple[Array, float, Array]:
    """Newton's method on b alone, halving steps that do not help."""
    value, residual = problem.losses(z + b)
    for _ in range(50):
        slope = residual.mean(0)
        if np.abs(slope).max() < 1e-11:
            break
        p = residual + problem.Y
        if problem.loss == "softmax":
            H = np.diag(p.mean(0)) - p.T @ p / problem.n
            step = np.linalg.lstsq(H + 1e-12 * np.eye(len(b)), slope, rcond=None)[0]
        else:
            step = slope / np.maximum((p * (1 - p)).mean(0), 1e-12)
        step -= step.mean() if problem.loss == "softmax" else 0
        while np.abs(step).max() > 1e-14:
            new, found = problem.losses(z + b - step)
            if new <= value + 1e-15 * abs(value):
                break
            step /= 2
        else:
            break
        b, value, residual = b - step, new, found
    return b, value, residual


class _Piece:
    """The problem on a working set: variables are P and M at its entries, then b."""

    def __init__(
        self, problem: Problem, columns: Any, work: Mask, strength: float, enough: float
    ) -> None:
        self.problem, self.strength, self.enough = problem, strength, enough
        self.shape = work.shape
        self.used = np.flatnonzero(work.any(0))
        self.X = columns[:, self.used].tocsr()  # [n a]
        self.rows, self.cols = np.nonzero(work[:, self.used])  # of each entry
        self.e = len(self.rows)
        self.at = np.full(0, np.nan)  # the variables that `found` belongs to
        self.found = np.inf  # the gap there, over the working set

    def solved(self, state: _State) -> tuple[Array, Array, int]:
        """W, b and the iterations that it took."""
        from scipy.optimize import minimize

        w = state.W[:, self.used][self.rows, self.cols]
        start = np.concatenate([np.maximum(w, 0), np.maximum(-w, 0), state.b])
        bounds = [(0, None)] * (2 * self.e) + [(None, None)] * len(state.b)
        options: dict[str, float] = {
            "maxiter": ITERATIONS,
            "maxfun": 2 * ITERATIONS,
            "maxcor": MEMORY,
        }
        options |= {"ftol": 1e-14, "gtol": 1e-10}
        result = minimize(
            self.objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options,
            callback=self.stop,
        )  # fmt: skip
        W = np.zeros(self.shape)
        W[self.rows, self.used[self.cols]] = self.entries(result.x)
        return W, result.x[2 * self.e :], int(result.nit)

    def entries(self, v: Array) -> Array:
        return v[: self.e] - v[self.e : 2 * self.e]

    def objective(self, v: Array) -> tuple[float, Array]:
        problem, e, w, b = self.problem, self.e, self.entries(v), v[2 * self.e :]
        W = np.zeros((len(self.used), len(b)))
        W[self.cols, self.rows] = w
        value, residual = problem.losses(self.X @ W + b)
        g = (self.X.T @ residual)[self.cols, self.rows] / problem.n
        smooth = g + self.strength * (1 - problem.rho) * w
        lasso = self.strength * problem.rho
        self.at, self.found = v.copy(), self._gap(_State(w, b, value, residual, g))
        value += lasso * float(v[: 2 * e].sum())
        value += self.strength * (1 - problem.rho) / 2 * float(w @ w)
        return value, np.concatenate([smooth + lasso, lasso - smooth, residual.mean(0)])

    def _gap(self, state: _State) -> float:
        """The duality gap over the working set, were the intercept the best one."""
        problem, strength = self.problem, self.strength
        off = float(np.abs(state.residual.mean(0)).sum())
        if problem.rho == 1:
            return duality_gap(problem, state, strength) + off
        dual = problem.penalty_conjugate(state.gradient / strength)
        inner = float(np.vdot(state.W, state.gradient))
        return strength * (problem.penalty(state.W) + dual) + inner + off

    def stop(self, intermediate_result: Any) -> None:
        if self.found <= self.enough and np.array_equal(self.at, intermediate_result.x):
            raise StopIteration
