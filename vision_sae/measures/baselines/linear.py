"""Baselines whose codes are linear in the rows; they are SAEs whose weights are set, not trained.

Their codes have signs. A code c becomes two latents, relu(c) and relu(-c), with opposite atoms: so
2 r latents for r directions, all codes >= 0 as an SAE's are, nothing lost.
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from vision_sae.errors import ConfigError, require
from vision_sae.sae import SAE, SAEConfig

MOST = 2**15  # rows that an iterative fit reads


def of_weights(
    W_enc: Float[Tensor, "s d"],
    W_dec: Float[Tensor, "s d"],
    centre: Float[Tensor, " d"],
    k: int | None,
) -> SAE:
    """f = relu((x - centre) W_enc'), each row's k largest, and x_hat = f W_dec + centre.

    Raises ConfigError for a k that is larger than the number of latents.
    """
    s, d = W_enc.shape
    if k is not None and k > s:
        raise ConfigError(f"a row cannot keep {k} of {s} latents")
    config = SAEConfig.of(d, s, "relu" if k is None else "topk", k, atoms="free")
    sae = SAE(config)
    with torch.no_grad():
        sae.W_enc.copy_(W_enc)
        sae.W_dec.copy_(W_dec)
        sae.b_dec.copy_(centre)
    return sae.eval().requires_grad_(False)


def signed(
    W: Float[Tensor, "r d"], A: Float[Tensor, "r d"], centre: Float[Tensor, " d"], k: int | None
) -> SAE:
    """Both halves of the codes (x - centre) W'."""
    return of_weights(torch.cat([W, -W]), torch.cat([A, -A]), centre, k)


def neurons(rows: Float[Tensor, "n d"], *, k: int | None, latents: int, seed: int) -> SAE:
    """The site's own dimensions, less their means: 2 d latents."""
    eye = torch.eye(rows.shape[1])
    return signed(eye, eye, rows.mean(0), k)


def pca(rows: Float[Tensor, "n d"], *, k: int | None, latents: int, seed: int) -> SAE:
    """Principal components (eigenvectors of the covariance), min(n - 1, d) of them, both signs."""
    centre = rows.double().mean(0)
    centred = rows.double() - centre
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    V = vectors.flip(1).T[: min(len(rows) - 1, rows.shape[1])].float()
    return signed(V, V, centre.float(), k)


def ica(rows: Float[Tensor, "n d"], *, k: int | None, latents: int, seed: int) -> SAE:
    """Independent components (FastICA, scikit-learn), scaled to atoms of norm 1, both signs.

    It reads at most 32,768 rows, spread evenly, and stops after 400 iterations, converged or not.
    """
    some = spread(rows)
    module = require("sklearn.decomposition", "report")
    r = min(some.shape[1], len(some) - 1)
    model = module.FastICA(r, whiten="unit-variance", max_iter=400, tol=1e-3, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", require("sklearn.exceptions", "report").ConvergenceWarning)
        model.fit(some.double().numpy())
    W, A = (torch.from_numpy(m).float() for m in (model.components_, model.mixing_.T))
    norm = A.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return signed(W * norm, A / norm, torch.from_numpy(model.mean_).float(), k)


def random(rows: Float[Tensor, "n d"], *, k: int | None, latents: int, seed: int) -> SAE:
    """The floor: an SAE whose atoms are drawn from the sphere and never trained.

    Encoder and atoms are the same up to one factor, by least squares on the rows. Without a k, each
    row keeps 16 (or all, where there are fewer).
    """
    generator = torch.Generator().manual_seed(seed)
    W = normalize(torch.randn(latents, rows.shape[1], generator=generator), dim=1)
    centre = rows.mean(0)
    sae = of_weights(W, W, centre, min(16, latents) if k is None else k)
    some = spread(rows, 4096)
    y, y_hat = some - centre, sae(some).x_hat - centre
    sae.W_dec *= float((y * y_hat).sum() / y_hat.square().sum().clamp(min=1e-12))
    return sae


def spread(rows: Float[Tensor, "n d"], most: int = MOST) -> Float[Tensor, "m d"]:
    """At most so many rows, spread evenly."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).long()]
