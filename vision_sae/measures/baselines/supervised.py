"""The dictionary that labels would give: a latent per factor value, which a linear probe sets."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, DataError
from vision_sae.measures.labelled import logistic
from vision_sae.measures.labelled.scoring import best_thresholds
from vision_sae.measures.labelled.task import properties
from vision_sae.sae import Output
from vision_sae.sparse.codes import Codes


class Supervised:
    """f_v = 1 where a probe's score for value v is at its threshold or above; x_hat = f A + mean.

    `names` has the (factor, value) of each latent.
    """

    def __init__(
        self,
        probe: logistic.Probe,
        thresholds: Float[Tensor, " v"],
        W_dec: Float[Tensor, "v d"],
        mean: Float[Tensor, " d"],
        names: list[tuple[str, str]],
    ) -> None:
        self.probe, self.thresholds, self.mean = probe, thresholds, mean
        self.W_dec, self.names = W_dec, names

    def encode(self, x: Float[Tensor, "n d"]) -> Codes:
        return Codes.of_dense((self.probe(x) >= self.thresholds).float())

    def decode(self, codes: Codes) -> Float[Tensor, "n d"]:
        return codes.to_dense() @ self.W_dec + self.mean

    def __call__(self, x: Float[Tensor, "n d"]) -> Output:
        codes = self.encode(x)
        return Output(codes, self.decode(codes))


def supervised(
    rows: Float[Tensor, "n d"], about: Sequence[dict[str, Any]], *, k: int | None = None
) -> Supervised:
    """Atoms that reconstruct the rows best from the true values (Makelov et al. 2024,

    arXiv 2405.08366, by least squares, as values overlap: a category and its subcategory). At use
    labels are not known: a class-balanced logistic regression per value says them, at the
    threshold of largest F1 on these rows. Values are those of `labelled.task.properties`. Raises
    DataError without labels, or for rows that are not one to an image; ConfigError for a k.
    """
    if k is not None:
        raise ConfigError("the supervised baseline has the latents that the labels say; drop the k")
    if len(rows) != len(about):
        raise DataError(
            f"the supervised baseline needs one row per image; got {len(rows):,} rows of "
            f"{len(about):,} images"
        )
    labels = properties(about)
    hot = torch.zeros(len(rows), len(labels.names), dtype=torch.bool)
    hot[labels.image, labels.value] = True
    probe = logistic.fit(rows, hot, torch.ones(len(rows), dtype=torch.bool))
    mean, F = rows.mean(0), hot.double()
    gram = F.T @ F + torch.eye(F.shape[1]).double()
    W_dec = torch.linalg.solve(gram, F.T @ (rows - mean).double()).float()
    return Supervised(probe, best_thresholds(probe(rows), hot), W_dec, mean, labels.names)
