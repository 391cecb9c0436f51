"""A regularisation path of heads, and which of them to take."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from vision_sae.errors import ConfigError
from vision_sae.recipes.bottleneck import measures
from vision_sae.recipes.bottleneck.head import Head, reaching
from vision_sae.recipes.bottleneck.labels import Targets
from vision_sae.recipes.bottleneck.solver import Solution

By = Literal["accuracy", "one-se", "per-class", "per-decision"]
BUDGETS = {"per-class": 10.0, "per-decision": 25.0}


@dataclass(frozen=True)
class Point:
    """One strength of the path: what it costs and what it gives, on the validation images.

    `per_class`: mean number of concepts with a weight in a class. `per_decision`: mean number of
    concepts that reach 95% of the predicted class' logit. `gap`: proof of optimality, see solver.
    """

    strength: float
    score: float
    score_error: float
    loss: float
    concepts: int
    per_class: float
    per_decision: float
    objective: float
    gap: float
    iterations: int
    l1_ratio: float = 1.0
    scale: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def point(solution: Solution, head: Head, X: Any, targets: Targets) -> Point:
    """What a head does on the validation images."""
    z = head.logits(X)
    p = head.probabilities(X)
    several = targets.several
    return Point(
        strength=solution.strength,
        score=measures.score(p, targets.Y, several=several),
        score_error=measures.score_error(p, targets.Y, several=several),
        loss=measures.log_loss(p, targets.Y, several=several),
        concepts=len(head.used),
        per_class=head.W.nnz / len(head.classes),
        per_decision=float(reaching(head.contributions(X, z.argmax(1))).mean()),
        objective=solution.objective,
        gap=solution.gap,
        iterations=solution.iterations,
        l1_ratio=solution.rho,
        scale=solution.scale,
    )


def check_choice(by: str, budget: float | None) -> None:
    """Raises ConfigError."""
    if by not in get_args(By):
        raise ConfigError(f"choose by {', '.join(get_args(By))}; got {by!r}")
    if budget is not None and by not in BUDGETS:
        raise ConfigError(f"a budget is for choosing by {' or '.join(BUDGETS)}, not by {by}")
    if budget is not None and not budget > 0:
        raise ConfigError(f"a budget of concepts must be above 0; got {budget}")


def choose(points: Sequence[Point], by: By = "accuracy", budget: float | None = None) -> int:
    """Which point to take: the best score on the validation images, of equals that which needs
    fewer concepts per decision.

    `one-se`: the sparsest whose score is within one standard error of the best (Breiman's rule).
    `per-class`, `per-decision`: the best of those that need at most `budget` concepts on average
    (10 and 25 by default). Raises ConfigError when none does.
    """
    check_choice(by, budget)
    allowed = list(range(len(points)))
    if by in BUDGETS:
        limit = BUDGETS[by] if budget is None else budget
        cost = [p.per_class if by == "per-class" else p.per_decision for p in points]
        allowed = [i for i in allowed if cost[i] <= limit and points[i].concepts]
        if not allowed:
            least = min((c for c, p in zip(cost, points, strict=True) if p.concepts), default=0)
            raise ConfigError(
                f"no head of the path needs at most {limit:g} concepts {by.replace('-', ' ')}; "
                f"the sparsest needs {least:.3g}"
            )
    best = max(allowed, key=lambda i: (round(points[i].score, 9), -points[i].per_decision, -i))
    if by != "one-se":
        return best
    floor = points[best].score - points[best].score_error
    near = [i for i in allowed if points[i].score >= floor]
    return min(near, key=lambda i: (points[i].per_decision, i))
