"""Metrics on cases with a known answer, and for any batching."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision_sae.errors import DataError
from vision_sae.losses import fvu
from vision_sae.measures.metrics import Running, evaluate, log10_histogram, quantiles
from vision_sae.sae import SAE, SAEConfig
from vision_sae.sparse.codes import Codes


def small_sae(d: int = 6, s: int = 12) -> SAE:
    return SAE(SAEConfig.of(d, s, "topk", 2))


@given(cuts=st.lists(st.integers(0, 40), max_size=5), offset=st.floats(-100, 100))
def test_metrics_do_not_depend_on_the_batches_nor_on_an_offset_of_the_data(
    cuts: list[int], offset: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64) + offset
    x_hat = x + 0.3 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    dense = torch.randn(40, 7, generator=generator) * (torch.rand(40, 7, generator=generator) > 0.5)
    running = Running(5, 7)
    for rows in torch.arange(40).tensor_split(sorted(cuts)):
        running.add(x[rows], x_hat[rows], Codes.of_dense(dense[rows]))
    result, l0 = running.result(), (dense != 0).sum(1).double()
    assert result.fvu == pytest.approx(float(fvu(x, x_hat)), rel=1e-9)
    assert result.cosine == pytest.approx(float(torch.cosine_similarity(x, x_hat).mean()), rel=1e-9)
    assert result.bias == pytest.approx(float(x_hat.square().sum() / (x * x_hat).sum()), rel=1e-9)
    assert result.l0 == pytest.approx(float(l0.mean()))
    assert result.l1 == pytest.approx(float(dense.abs().sum(1).mean()), rel=1e-6)
    for mine, q in ((result.l0_p05, 0.05), (result.l0_p50, 0.5), (result.l0_p95, 0.95)):
        assert mine == l0.quantile(q, interpolation="lower")
    assert torch.allclose(running.frequencies(), (dense != 0).double().mean(0))


def test_a_constant_error_counts() -> None:
    """A variance of the residual alone, as some libraries take it, would call this perfect."""
    x = torch.randn(100, 4)
    running = Running(4, 2)
    running.add(x, x + 1.0, Codes.of_dense(torch.ones(100, 2)))
    want = 400 / float((x - x.mean(0)).square().sum())
    assert running.result().fvu == pytest.approx(want, rel=1e-4)


def test_dead_common_dense_and_ratios() -> None:
    x = torch.ones(100, 3)
    fires = torch.zeros(100, 4)
    fires[:, 0] = 1  # dense
    fires[:10, 1] = -1  # exactly a tenth: common, not dense; negative codes are active
    fires[:1, 2] = 1  # exactly a hundredth: not common
    running = Running(3, 4)
    running.add(x, x / 2, Codes.of_dense(fires))
    result = running.result()
    assert (result.dead, result.common, result.dense) == (0.25, 0.5, 0.25)
    assert (result.norm_ratio, result.bias) == (0.5, 0.5)
    assert math.isnan(result.fvu)  # constant data has no variance to explain


@given(values=st.lists(st.integers(0, 6), min_size=1, max_size=30), q=st.floats(0.01, 1))
def test_quantiles_of_counts_are_those_of_the_sorted_values(values: list[int], q: float) -> None:
    counts = torch.bincount(torch.tensor(values), minlength=7)
    least = min(v for v in values if sum(w <= v for w in values) >= q * len(values))
    assert quantiles(counts, [q]) == [least]


def test_log10_histogram_counts_every_latent_once() -> None:
    shares = torch.tensor([0.0, 1e-9, 1e-2, 0.02, 0.5, 1.0], dtype=torch.float64)
    found = log10_histogram(shares, low=-3, per_decade=1)
    assert found.edges == [-3, -2, -1, 0]
    assert (found.counts, found.never) == ([1, 2, 2], 1)


def test_evaluate_takes_images_by_tokens_and_leaves_the_mode_alone() -> None:
    sae = small_sae()
    x = torch.randn(4, 5, 6)
    images, rows = evaluate(sae, [x]), evaluate(sae, x.flatten(0, 1).split(7))
    assert images.as_dict() == pytest.approx(rows.as_dict(), rel=1e-6)
    assert (images.rows, images.l0) == (20, 2)
    assert images.alignment == pytest.approx(1, abs=1e-6)
    assert sae.training


def test_pairs_are_measured_against_their_targets() -> None:
    sae = small_sae()
    x, y = torch.randn(20, 6), torch.randn(20, 6)
    found = evaluate(sae, [(x[:9], y[:9]), (x[9:], y[9:])])
    assert found.fvu == pytest.approx(float(fvu(y, sae(x).x_hat.detach())), rel=1e-5)
    with pytest.raises(DataError, match=r"\(20, 6\) and \(3, 6\)"):
        evaluate(sae, [(x, y[:3])])


def test_a_transcoder_is_measured_against_targets_of_another_width() -> None:
    sae = SAE(SAEConfig.of(6, 12, "topk", 2, d_out=4))
    x, y = torch.randn(5, 3, 6), torch.randn(5, 3, 4)
    found = evaluate(sae, [(x, y)])
    expected = fvu(y.flatten(0, 1), sae(x).x_hat.detach())
    assert found.fvu == pytest.approx(float(expected), rel=1e-5)
    assert found.rows == 15 and math.isnan(found.alignment)
    with pytest.raises(DataError, match="inputs alone"):
        evaluate(sae, [x])


def test_no_rows_is_an_error_that_says_so() -> None:
    for batches in ([], [torch.empty(0, 6)]):
        with pytest.raises(DataError, match="at least one row"):
            evaluate(small_sae(), batches)


def test_metrics_are_plain_numbers() -> None:
    found = evaluate(small_sae(), [torch.randn(8, 6)])
    assert all(type(value) in (int, float) for value in found.as_dict().values())
    assert replace(found, fvu=0.0) != found
