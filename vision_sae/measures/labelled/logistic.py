"""Many logistic regressions in one go: one per factor value, on the same or on few own features."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from vision_sae.sparse.codes import Codes
from vision_sae.sparse.kernels import gather_sum, scatter_sum

Features = Tensor | Codes  # [n d], or sparse codes [n s]
NEWTON, HALVINGS = 50, 12  # steps at most, and halvings of a step that does not help


@dataclass(frozen=True)
class Probe:
    """Linear scores: one column of weights and one bias per value."""

    weight: Float[Tensor, "d v"]
    bias: Float[Tensor, " v"]

    def __call__(self, features: Features) -> Float[Tensor, "n v"]:
        """Log odds."""
        return _times(features, self.weight) + self.bias


def fit(
    features: Features,
    truth: Bool[Tensor, "n v"],
    of: Bool[Tensor, " n"],
    *,
    C: float = 1.0,
    balanced: bool = True,
    steps: int = 30,
) -> Probe:
    """For each value: minimise C sum_i w_i log(1 + exp(-y_i (w . x_i + b))) + |w|^2 / 2.

    Over the rows `of`, whose features are standardised (codes are only scaled, so that they stay
    sparse); w_i are 1, or balance the classes: n / (2 n_class), as scikit-learn's
    `class_weight="balanced"`, whose LogisticRegression is the slow twin. All values are solved
    together by L-BFGS, in `steps` iterations at most: few, since to stop early regularises too.
    """
    shift, scale = _standard(features, of)
    part = _scaled(_rows(features, of), shift, scale)
    n = int(of.sum())
    weights = _weights(truth[of], balanced) * C / n
    solution = _solve(part, truth[of].float(), weights, 1 / n, steps)
    weight = solution.weight / scale[:, None]
    return Probe(weight, solution.bias - shift @ weight)


def _solve(features: Features, truth: Tensor, weights: Tensor, decay: float, steps: int) -> Probe:
    shape = (features.shape[1] if isinstance(features, Tensor) else features.width, truth.shape[1])
    x = torch.zeros(shape[0] + 1, shape[1])  # the last row is the bias
    solver = torch.optim.LBFGS(
        [x], max_iter=steps, history_size=10, tolerance_grad=1e-6, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        odds = _times(features, x[:-1]) + x[-1]
        error = weights * (odds.sigmoid() - truth)
        gradient = _transposed(features, error) + decay * x[:-1]
        x.grad = torch.cat([gradient, error.sum(0)[None]])
        loss = (weights * (softplus(odds) - truth * odds)).sum()
        return loss + decay / 2 * x[:-1].square().sum()

    with torch.no_grad():
        solver.step(closure)
    return Probe(x[:-1].clone(), x[-1].clone())


@torch.no_grad()
def fit_few(
    x: Float[Tensor, "n k"], truth: Bool[Tensor, " n"], of: Bool[Tensor, " n"], *, C: float = 1.0
) -> Probe:
    """The same for one value and few features, class-balanced, by Newton's method.

    Codes are mostly 0, so rows without any active feature count as one heavy row.
    """
    scale = _standard(x, of)[1]
    y = truth[of]
    weights = _weights(y[:, None], True)[:, 0] * C
    rows, y, weights = _merged((x[of] / scale).double(), y.double(), weights.double())
    w = _newton(torch.cat([rows, torch.ones(len(rows), 1)], 1), y, weights)
    return Probe((w[:-1] / scale)[:, None].float(), w[-1:].float())


def _merged(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of zeros become two, one of each class."""
    on = (x != 0).any(1)
    off = torch.stack([weights[~on & (y == label)].sum() for label in (0, 1)])
    ends = torch.zeros(2, x.shape[1], dtype=x.dtype), torch.tensor([0.0, 1.0], dtype=x.dtype)
    return torch.cat([x[on], ends[0]]), torch.cat([y[on], ends[1]]), torch.cat([weights[on], off])


def _newton(x: Tensor, y: Tensor, weights: Tensor) -> Float[Tensor, " k_plus_1"]:
    """Halved steps, until the loss no longer falls; the last column of x is the bias."""
    decay = torch.ones(x.shape[1], dtype=x.dtype)
    decay[-1] = 0

    def loss(w: Tensor) -> Tensor:
        odds = x @ w
        return (weights * (softplus(odds) - y * odds)).sum() + (decay * w.square()).sum() / 2

    w = torch.zeros(x.shape[1], dtype=x.dtype)
    now = loss(w)
    for _ in range(NEWTON):
        p = (x @ w).sigmoid()
        gradient = x.T @ (weights * (p - y)) + decay * w
        curve = (x * (weights * p * (1 - p))[:, None]).T @ x + torch.diag(decay + 1e-9)
        step = torch.linalg.solve(curve, gradient)
        for _ in range(HALVINGS):
            then = loss(w - step)
            if then <= now:
                break
            step = step / 2
        if now - then <= 1e-8 * now:
            break
        w, now = w - step, then
    return w


def _weights(truth: Bool[Tensor, "n v"], balanced: bool) -> Float[Tensor, "n v"]:
    if not balanced:
        return torch.ones(truth.shape)
    n, yes = len(truth), truth.sum(0)
    return torch.where(truth, n / (2 * yes.clamp(min=1)), n / (2 * (n - yes).clamp(min=1)))


def _times(features: Features, weight: Tensor) -> Float[Tensor, "n v"]:
    if isinstance(features, Codes):
        return gather_sum(features.values, features.support, weight)
    return features @ weight


def _transposed(features: Features, error: Float[Tensor, "n v"]) -> Float[Tensor, "d v"]:
    if isinstance(features, Codes):
        return scatter_sum(features.values, features.support, error)
    return features.T @ error


def _standard(features: Features, of: Bool[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """Mean (0 for codes) and standard deviation over some rows; 1 where a feature is constant."""
    if isinstance(features, Tensor):
        spread = features[of].std(0, correction=0)
        return features[of].mean(0), torch.where(spread > 1e-8, spread, 1.0)
    n = int(of.sum())
    values = features.values.float() * of[features.rows]
    sums, squares = (
        torch.zeros(features.width).index_add(0, features.indices, v)
        for v in (values, values.square())
    )
    spread = (squares / n - (sums / n).square()).clamp(min=0).sqrt()
    return torch.zeros(features.width), torch.where(spread > 1e-8, spread, 1.0)


def _scaled(features: Features, shift: Tensor, scale: Tensor) -> Features:
    if isinstance(features, Codes):
        return features.map(lambda values: values.float() / features.per_entry(scale))
    return (features - shift) / scale


def _rows(features: Features, of: Bool[Tensor, " n"]) -> Features:
    return some_rows(features, of) if isinstance(features, Codes) else features[of]


def some_rows(codes: Codes, of: Bool[Tensor, " n"]) -> Codes:
    """The codes of some rows only."""
    entries = of[codes.rows].nonzero()[:, 0]
    number = of.long().cumsum(0) - 1
    support = codes.support.of_rows(
        number[codes.rows[entries]], codes.indices[entries], int(of.sum()), codes.width
    )
    return Codes(codes.values[entries], support)
