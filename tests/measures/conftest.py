"""Cases small enough to know the answer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.measures.case import Case, Dictionary, Layout, Sample
from vision_sae.sae import Output
from vision_sae.sparse.codes import Codes


class Planted:
    """A dictionary whose codes are whatever a function makes of its rows."""

    def __init__(self, codes: Callable[[Tensor], Tensor], W_dec: Tensor) -> None:
        self.codes_of, self.W_dec = codes, W_dec

    def encode(self, x: Tensor) -> Codes:
        return Codes.of_dense(self.codes_of(x))

    def decode(self, codes: Codes) -> Tensor:
        return codes.to_dense() @ self.W_dec

    def __call__(self, x: Tensor) -> Output:
        codes = self.encode(x)
        return Output(codes, self.decode(codes))


def identity(d: int) -> Planted:
    """Codes are the rows."""
    return Planted(lambda x: x, torch.eye(d))


def case_of(rows: Tensor, dictionary: Dictionary | None = None, **options: Any) -> Case:
    """The same sample to fit on and to test on."""
    sample = {k: options.pop(k) for k in ("layout", "keys", "about", "embeddings") if k in options}
    both = Sample(rows, **{"layout": Layout(), **sample})
    return Case("case", dictionary or identity(rows.shape[1]), both, both, **options)


@pytest.fixture
def random_rows() -> Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
