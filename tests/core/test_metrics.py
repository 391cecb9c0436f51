"""Metrics on cases with a known answer, and for any batching."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from vision_sae.codes import Codes
from vision_sae.losses import fvu
from vision_sae.metrics import Running, evaluate
from vision_sae.sae import SAE, SAEConfig


def codes_of(dense: Float[Tensor, "n s"]) -> Codes:
    indices = torch.arange(dense.shape[1]).expand(len(dense), -1)
    return Codes(dense, indices, dense.shape[1])


@given(cuts=st.lists(st.integers(1, 39), max_size=5, unique=True), offset=st.floats(-100, 100))
def test_metrics_do_not_depend_on_the_batches_nor_on_an_offset_of_the_data(
    cuts: list[int], offset: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64) + offset
    x_hat = x + 0.3 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    dense = torch.rand(40, 7, generator=generator).relu() * (
        torch.rand(40, 7, generator=generator) > 0.5
    )
    running = Running(5, 7)
    for rows in torch.arange(40).tensor_split(sorted(cuts)):
        running.add(x[rows], x_hat[rows], codes_of(dense[rows]))
    result = running.result()
    assert result.fvu == pytest.approx(float(fvu(x, x_hat)), rel=1e-9)
    assert result.cosine == pytest.approx(float(torch.cosine_similarity(x, x_hat).mean()), rel=1e-9)
    assert result.l0 == pytest.approx(float((dense > 0).sum(1).double().mean()))
    assert torch.allclose(running.frequencies(), (dense > 0).double().mean(0))


def test_a_constant_error_counts() -> None:
    """A variance of the residual alone, as some libraries take it, would call this perfect."""
    x = torch.randn(100, 4)
    running = Running(4, 2)
    running.add(x, x + 1.0, codes_of(torch.ones(100, 2)))
    want = 400 / float((x - x.mean(0)).square().sum())
    assert running.result().fvu == pytest.approx(want, rel=1e-4)


def test_dead_dense_and_ratio() -> None:
    x = torch.ones(100, 3)
    fires = torch.zeros(100, 4)
    fires[:, 0] = 1  # dense
    fires[:10, 1] = 1  # exactly a tenth: not dense
    fires[:1, 2] = 1
    running = Running(3, 4)
    running.add(x, x / 2, codes_of(fires))
    result = running.result()
    assert (result.dead, result.dense, result.norm_ratio) == (0.25, 0.25, 0.5)
    assert result.fvu != result.fvu  # constant data has no variance to explain


def test_evaluate_takes_images_by_tokens_and_leaves_the_mode_alone() -> None:
    sae = SAE(SAEConfig.of(6, 12, "topk", 2))
    x = torch.randn(4, 5, 6)
    assert evaluate(sae, [x]) == evaluate(sae, x.flatten(0, 1).split(7))
    assert sae.training
