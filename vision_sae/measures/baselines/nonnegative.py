"""NMF and semi-NMF: codes >= 0 by non-negative least squares on fixed atoms."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, require
from vision_sae.measures.baselines.linear import spread
from vision_sae.sae import Output
from vision_sae.sparse.codes import Codes
from vision_sae.statistics import kmeans

ROWS = 2**13  # that a factorisation reads


class NonNegative:
    """x_hat = f W_dec + base with f = argmin_{f >= 0} |x - base - f W_dec|.

    With k, each row keeps the k codes of largest contribution f_i |a_i|.
    """

    def __init__(
        self, W_dec: Float[Tensor, "s d"], base: Float[Tensor, " d"], k: int | None
    ) -> None:
        if k is not None and k > len(W_dec):
            raise ConfigError(f"a row cannot keep {k} of {len(W_dec)} latents")
        self.W_dec, self.base, self.k = W_dec, base, k

    def encode(self, x: Float[Tensor, "n d"]) -> Codes:
        f = nonnegative_codes(x - self.base, self.W_dec)
        if self.k is None:
            return Codes.of_dense(f)
        kept = (f * self.W_dec.norm(dim=1)).topk(self.k, dim=1).indices
        return Codes.even(f.gather(1, kept), kept, len(self.W_dec)).without_zeros()

    def decode(self, codes: Codes) -> Float[Tensor, "n d"]:
        return codes.to_dense() @ self.W_dec + self.base

    def __call__(self, x: Float[Tensor, "n d"]) -> Output:
        codes = self.encode(x)
        return Output(codes, self.decode(codes))


def nonnegative_codes(y: Float[Tensor, "n d"], A: Float[Tensor, "s d"]) -> Float[Tensor, "n s"]:
    """argmin over f >= 0 of |y - f A|^2, row by row (scipy's nnls: some milliseconds each).

    Exact, as atoms of rows that lie far from zero are nearly parallel: projected gradients are far
    from the minimum after thousands of steps.
    """
    nnls = require("scipy.optimize", "report").nnls
    atoms, found = A.T.double().cpu().numpy(), torch.zeros(len(y), len(A))
    for i, row in enumerate(y.double().cpu().numpy()):
        found[i] = torch.from_numpy(nnls(atoms, row, maxiter=30 * len(A))[0])
    return found.to(y)


def nmf(rows: Float[Tensor, "n d"], *, k: int | None, latents: int, seed: int) -> NonNegative:
    """NMF (scikit-learn) of the rows less each dimension's least value; min(latents, d) atoms.

    A new row below that value is fitted as it is. It reads at most 8,192 rows, spread evenly, and
    stops after 300 iterations, converged or not.
    """
    some = spread(rows, ROWS)
    least = some.amin(0)
    model = require("sklearn.decomposition", "report").NMF(
        min(latents, *some.shape), init="nndsvda", max_iter=300, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", require("sklearn.exceptions", "report").ConvergenceWarning)
        model.fit((some - least).clamp(min=0).double().numpy())
    return NonNegative(torch.from_numpy(model.components_).float(), least, k)


def semi_nmf(
    rows: Float[Tensor, "n d"], *, k: int | None, latents: int, seed: int, rounds: int = 100
) -> NonNegative:
    """Semi-NMF (Ding, Li & Jordan 2010): rows = F A, F >= 0, A of any sign.

    A by least squares and F by the paper's multiplicative update, in turn, from k-means. It reads
    at most 8,192 rows, spread evenly; min(latents, d) atoms.
    """
    X = spread(rows, ROWS).double()
    r = min(latents, *X.shape)
    nearest = torch.cdist(X, kmeans(X, r, seed=seed)).argmin(1)
    F = torch.nn.functional.one_hot(nearest, r).double() + 0.2
    for _ in range(rounds):
        A = _atoms(F, X)
        XA, AA = X @ A.T, A @ A.T
        up = XA.clamp(min=0) + F @ (-AA).clamp(min=0)
        down = (-XA).clamp(min=0) + F @ AA.clamp(min=0)
        F = F * (up / down.clamp(min=1e-12)).sqrt()
    return NonNegative(_atoms(F, X).float(), torch.zeros(rows.shape[1]), k)


def _atoms(F: Float[Tensor, "n r"], X: Float[Tensor, "n d"]) -> Float[Tensor, "r d"]:
    ridge = 1e-9 * F.square().sum() / F.shape[1] * torch.eye(F.shape[1]).to(F)
    atoms: Tensor = torch.linalg.solve(F.T @ F + ridge, F.T @ X)
    return atoms
