"""Sparse elastic-net logistic regression on SAE codes: time, memory and proof, against others.

python benchmarks/bottleneck_solver.py                        # ours: 50,000 x 8,192, 10 classes
python benchmarks/bottleneck_solver.py --one saga skglm       # pip install skglm adelie
python benchmarks/bottleneck_solver.py --rows 10000 --latents 2048 --one ours saga skglm adelie

Codes: `--k` of the latents per row, drawn by power-law frequencies, 40 of them likelier in each
class; 8% of labels at random. All solve the same falling strengths, each from the one before, on
codes in units of their deviation, a fifth of rows held out. `gap` is the largest relative duality
gap of a path by our own certificate: skglm's is that of one logistic regression per class, as it
has no softmax. A solver is stopped after `--limit` seconds of CPU.
skglm's first strength holds its compilation.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from apart import gigabytes
from scipy.sparse import csc_matrix, csr_array, csr_matrix

from vision_sae.recipes.bottleneck.path import units
from vision_sae.recipes.bottleneck.solver import Problem, gap_of, solve_path, strengths

RHO = 0.95
Fit = tuple[Any, Any]  # W [c s], b [c]


def codes(args: argparse.Namespace) -> tuple[Any, Any]:
    rng = np.random.default_rng(args.seed)
    n, s, c, k = args.rows, args.latents, args.classes, args.k
    often = np.log(1 / np.arange(1, s + 1) ** 0.7)
    lift = np.zeros((c, s))
    for row in lift:
        row[rng.choice(s, 40, replace=False)] = rng.uniform(2, 5, 40)
    y = rng.integers(0, c, n)
    active = np.empty((n, k), np.int32)
    for start in range(0, n, 500):
        part = slice(start, start + 500)
        wish = often + lift[y[part]] + rng.gumbel(size=(len(y[part]), s))
        active[part] = np.argpartition(-wish, k, axis=1)[:, :k]
    values = np.abs(rng.standard_normal((n, k))) + 0.2
    X = csr_array(
        (values.ravel(), active.ravel(), np.arange(n + 1, dtype=np.int32) * k), shape=(n, s)
    )
    return X, np.where(rng.random(n) < 0.08, rng.integers(0, c, n), y)


def ours(problem: Problem, y: Any, grid: Any) -> Iterator[Fit]:
    for one in solve_path(problem, grid, tolerance=1e-4):
        yield one.W.toarray(), one.b


def saga(problem: Problem, y: Any, grid: Any) -> Iterator[Fit]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="saga", l1_ratio=RHO, warm_start=True, tol=1e-4, max_iter=200)
    X = csr_matrix(problem.X)
    for strength in grid:
        model.set_params(C=1 / (problem.n * strength)).fit(X, y)
        yield model.coef_.copy(), model.intercept_.copy()


def skglm(problem: Problem, y: Any, grid: Any) -> Iterator[Fit]:
    from skglm.datafits import Logistic
    from skglm.penalties import L1_plus_L2
    from skglm.solvers import ProxNewton
    from skglm.utils.jit_compilation import compiled_clone

    X, (c, s) = csc_matrix(problem.X), (problem.Y.shape[1], problem.X.shape[1])
    W, b, fit = np.zeros((c, s)), np.zeros(c), compiled_clone(Logistic())
    for strength in grid:
        for j in range(c):
            signs = np.where(y == j, 1.0, -1.0)
            fit.initialize_sparse(X.data, X.indptr, X.indices, signs)
            solver = ProxNewton(tol=1e-5, fit_intercept=True, warm_start=True)
            penalty = compiled_clone(L1_plus_L2(strength, RHO))
            start = X @ W[j] + b[j]
            found = solver.solve(X, signs, fit, penalty, np.append(W[j], b[j]), start)[0]
            W[j], b[j] = found[:-1], found[-1]
        yield W.copy(), b.copy()


def adelie(problem: Problem, y: Any, grid: Any) -> Iterator[Fit]:
    import adelie as ad

    c, s = problem.Y.shape[1], problem.X.shape[1]
    state = ad.grpnet(
        ad.matrix.sparse(csc_matrix(problem.X), n_threads=1),
        ad.glm.multinomial(problem.Y.copy()), groups="ungrouped", alpha=RHO,
        lmda_path=np.array(grid) / c, early_exit=False, progress_bar=False,
    )  # fmt: skip
    for beta, intercept in zip(state.betas, state.intercepts, strict=True):
        yield np.asarray(beta.todense()).reshape(s, c).T, np.asarray(intercept)


SOLVERS = {"ours": ours, "saga": saga, "skglm": skglm, "adelie": adelie}


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    X, y = codes(args)
    cut = args.rows * 4 // 5
    unit = units(X[:cut], "deviation")
    scaled = csr_array(X.multiply(unit[None, :]))
    one_hot = np.eye(args.classes)[y[:cut]]
    problem = Problem(scaled[:cut], one_hot, "sigmoid" if name == "skglm" else "softmax", RHO)
    grid = strengths(Problem(scaled[:cut], one_hot, "softmax", RHO), args.strengths, 1e-3)
    started, marks, found = (time.process_time(), time.perf_counter()), [], []
    for fit in SOLVERS[name](problem, y[:cut], grid):
        marks.append(time.process_time() - started[0])
        found.append(fit)
        if marks[-1] > args.limit:
            break
    memory, wall = gigabytes(), time.perf_counter() - started[1]
    right = [((scaled[cut:] @ W.T + b).argmax(1) == y[cut:]).mean() for W, b in found]
    some = range(1, len(found), max(1, len(found) // 6))
    gaps = [gap_of(problem, *found[i], float(grid[i])) for i in some]
    return {
        "solver": name, "CPU s": marks[-1], "CPU s of the first": marks[0], "wall s": wall,
        "solved": len(found),
        "of": len(grid), "gap": max(gaps, default=0.0), "held-out accuracy": max(right),
        "non-zeros at the end": int((found[-1][0] != 0).sum()), "peak GB": memory,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = {"rows": 50_000, "latents": 8192, "classes": 10, "k": 32, "strengths": 36, "seed": 0}
    for option, value in usual.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--limit", type=float, default=300)
    parser.add_argument("--one", nargs="+", choices=SOLVERS, default=["ours"])
    args = parser.parse_args()
    if len(args.one) == 1:
        print(json.dumps(measure(args.one[0], args)), flush=True)
        return
    rest = [f"--{name}={getattr(args, name)}" for name in [*usual, "limit"]]
    for name in args.one:  # a process each, so that memory is its own
        subprocess.run([sys.executable, __file__, *rest, "--one", name], check=True)


if __name__ == "__main__":
    main()
