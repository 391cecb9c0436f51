"""What is done to each row by itself before encoding, and undone on the reconstruction."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

RowNorm = Literal["none", "constant_norm", "layer_norm"]
EPS = 1e-5


class RowTreatment(NamedTuple):
    """The treated rows, and the function that undoes it."""

    rows: Float[Tensor, "n d"]
    undo: Callable[[Tensor], Tensor]


def treat_rows(x: Float[Tensor, "n d"], how: RowNorm) -> RowTreatment:
    """constant_norm: to length sqrt(d). layer_norm: to mean 0 and standard deviation 1.

    The deviation is the unbiased one; rows are divided by it plus 1e-5 and multiplied by it alone
    on the way back, as in openai/sparse_autoencoder and SAELens.
    """
    if how == "constant_norm":
        factor = x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return RowTreatment(x * factor, lambda y: y / factor)
    if how == "layer_norm" and len(x):
        mean = x.mean(1, keepdim=True)
        deviation = (x - mean).std(1, keepdim=True)
        return RowTreatment((x - mean) / (deviation + EPS), lambda y: y * deviation + mean)
    return RowTreatment(x, lambda y: y)
