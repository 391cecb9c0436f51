"""k-means: each row is its nearest centre."""

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, require
from vision_sae.sae import Output
from vision_sae.sparse.codes import Codes


class Clusters:
    """One latent per centre, 1 for the nearest one; the atoms are the centres."""

    def __init__(self, centres: Float[Tensor, "s d"]) -> None:
        self.W_dec = centres

    def encode(self, x: Float[Tensor, "n d"]) -> Codes:
        nearest = torch.cdist(x, self.W_dec).argmin(1, keepdim=True)
        return Codes.even(torch.ones(nearest.shape), nearest, len(self.W_dec))

    def decode(self, codes: Codes) -> Float[Tensor, "n d"]:
        out = torch.zeros(len(codes), self.W_dec.shape[1])
        return out.index_add(0, codes.rows, codes.values[:, None] * self.W_dec[codes.indices])

    def __call__(self, x: Float[Tensor, "n d"]) -> Output:
        codes = self.encode(x)
        return Output(codes, self.decode(codes))


def kmeans(rows: Float[Tensor, "n d"], *, k: int | None, latents: int, seed: int) -> Clusters:
    """Centres by scikit-learn's MiniBatchKMeans, `latents` of them or as many as there are rows.

    Raises ConfigError for a k other than 1.
    """
    if k not in (None, 1):
        raise ConfigError(f"k-means keeps one latent per row; got {k}")
    model = require("sklearn.cluster", "report").MiniBatchKMeans(
        min(latents, len(rows)), random_state=seed, n_init=1, batch_size=4096, max_iter=30
    )
    model.fit(rows.numpy())
    return Clusters(torch.from_numpy(model.cluster_centers_).float())
