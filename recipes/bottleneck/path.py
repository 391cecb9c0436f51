"""From codes and targets to a path of heads: scaling, centring, the solver, and a refit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from vision_sae.errors import ConfigError
from vision_sae.recipes.bottleneck.head import Head
from vision_sae.recipes.bottleneck.labels import Targets
from vision_sae.recipes.bottleneck.solver import (
    Array,
    Problem,
    Solution,
    solve_path,
    solve_support,
    strengths,
)

Scale = Literal["deviation", "none"]


@dataclass(frozen=True)
class PathConfig:
    """`scale`: concepts are penalised in units of their standard deviation, or of their codes.
    `relaxed`: weights are fitted anew on the concepts that the penalty chose, with a small l2
    penalty in its place (the relaxed lasso, Meinshausen 2007). `l1_ratio`: l1 shares of the
    penalty. Each scale and each share has a path of its own."""

    l1_ratio: Sequence[float] = (0.95,)
    strengths: int = 36
    smallest: float = 1e-3
    scale: Sequence[Scale] = ("deviation",)
    centre: bool = True
    relaxed: bool = False
    tolerance: float = 1e-4


def heads(
    X: Any,
    targets: Targets,
    config: PathConfig,
    tell: Callable[[int], None] = lambda solved: None,
) -> Iterator[tuple[Solution, Head]]:
    """The head at each strength, from no concept on, with the solver's certificate; one path after
    the other where there are several scales or l1 shares."""
    means = np.asarray(X.mean(0)).ravel() if config.centre else np.zeros(X.shape[1])
    for scale in config.scale:
        unit = units(X, scale)
        for solution, W, b in _solved(_scaled(X, unit), targets, config, tell):
            W = _scaled(W, unit)
            head = Head(targets.classes, W, b + W @ means, means, targets.several)
            yield replace(solution, scale=scale), head


def _solved(
    X: Any, targets: Targets, config: PathConfig, tell: Callable[[int], None]
) -> Iterator[tuple[Solution, Any, Array]]:
    """The solution at each l1 share and strength, with the weights and intercept to take."""
    for rho in config.l1_ratio:
        problem = Problem(X, targets.Y, targets.loss, rho)
        grid = strengths(problem, config.strengths, config.smallest)
        for solution in solve_path(problem, grid, tolerance=config.tolerance, tell=tell):
            taken = solve_support(problem, solution) if config.relaxed else None
            yield solution, *(taken or (solution.W, solution.b))


def units(X: Any, scale: Scale) -> Array:
    """What codes are multiplied by before fitting [s]; 0 for concepts that never vary."""
    if scale not in ("deviation", "none"):
        raise ConfigError(f"scale must be deviation or none; got {scale!r}")
    mean = np.asarray(X.mean(0)).ravel()
    square = np.asarray(X.multiply(X).mean(0)).ravel()
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    live = deviation > 1e-9 * np.sqrt(np.maximum(square, 1e-300))
    unit: Array = np.where(live, 1.0 / np.where(live, deviation, 1), 0)
    return unit if scale == "deviation" else live.astype(float)


def _scaled(X: Any, unit: Array) -> Any:
    from scipy.sparse import csr_array

    return csr_array(X.multiply(unit[None, :]))
