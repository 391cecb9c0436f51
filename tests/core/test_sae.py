"""The module: shapes, folding, thresholds, and errors that say what is allowed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision_sae.errors import ConfigError, DataError
from vision_sae.sae import SAE, SAEConfig
from vision_sae.statistics import calibrate, geometric_median

FAMILIES = ["topk", "batchtopk"]


@given(d=st.integers(1, 16), s=st.integers(1, 40), family=st.sampled_from(FAMILIES), data=st.data())
def test_config_goes_through_json(d: int, s: int, family: str, data: st.DataObject) -> None:
    config = SAEConfig.of(d, s, family, data.draw(st.integers(1, s)))
    assert SAEConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 16, "topk", 17), r"k must lie in 1\.\.16 .*got 17"),
        ((8, 16, "topk", 0), r"k: .*greater than or equal to 1; got 0"),
        ((8, 16, "topp", 2), r"no family 'topp'; there are: topk, batchtopk"),
    ],
)
def test_a_bad_config_says_what_is_allowed(
    arguments: tuple[int, int, str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SAEConfig.of(*arguments)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        SAEConfig.model_validate({"d": 2, "s": 4, "sparsity": {"kind": "topk", "k": 1, "kk": 2}})


@pytest.mark.parametrize("family", FAMILIES)
def test_leading_axes_are_rows(family: str) -> None:
    sae = SAE(SAEConfig.of(6, 12, family, 2))
    x = torch.randn(2, 3, 6)
    codes, x_hat = sae(x)
    assert codes.to_dense().shape == (6, 12)
    assert torch.equal(x_hat, sae(x.reshape(6, 6)).x_hat)
    assert sae.pre_activations(x).shape == (2, 3, 12)


def test_another_width_is_refused() -> None:
    with pytest.raises(DataError, match=r"width 6; got shape \(3, 5\)"):
        SAE(SAEConfig.of(6, 12, "topk", 2))(torch.randn(3, 5))


def test_equal_seeds_give_equal_saes_with_unit_atoms() -> None:
    one, two, three = (SAE(SAEConfig.of(6, 12, "topk", 2), seed=s) for s in (4, 4, 5))
    assert torch.equal(one.W_dec, two.W_dec)
    assert not torch.equal(one.W_dec, three.W_dec)
    assert torch.allclose(one.W_dec.norm(dim=1), torch.ones(12))
    assert torch.equal(one.W_dec, one.W_enc)


@pytest.mark.parametrize("family", FAMILIES)
@given(scale=st.floats(0.01, 100))
def test_folding_the_scale_changes_units_only(family: str, scale: float) -> None:
    """SAE(scale * x) / scale equals the folded SAE(x); atoms keep unit norm."""
    sae = SAE(SAEConfig.of(6, 12, family, 3), seed=1).eval()
    with torch.no_grad():
        sae.b_enc += 0.1
        sae.b_dec += 0.2
        sae.threshold.fill_(0.3)
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    want = sae(x * scale)
    sae.fold_scale(scale)
    got = sae(x)
    assert torch.allclose(got.x_hat, want.x_hat / scale, rtol=1e-3, atol=1e-4)
    assert torch.allclose(got.codes.to_dense(), want.codes.to_dense() / scale, rtol=1e-3, atol=1e-4)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(12))


def test_batchtopk_without_a_threshold_refuses_inference() -> None:
    sae = SAE(SAEConfig.of(6, 12, "batchtopk", 2)).eval()
    with pytest.raises(ConfigError, match="no inference threshold yet: train it"):
        sae(torch.randn(3, 6))


def test_batchtopk_prefers_the_calibrated_threshold_and_reads_rows_alone() -> None:
    sae = SAE(SAEConfig.of(6, 24, "batchtopk", 3)).eval()
    x = torch.randn(500, 6)
    sae.threshold_ema.fill_(9.0)
    assert float(sae.inference_threshold()) == 9.0
    sae.threshold.copy_(calibrate(sae, x))
    assert float(sae.inference_threshold()) == float(sae.threshold)
    assert float(sae.encode(x).l0.float().mean()) == pytest.approx(3, abs=0.01)
    alone = torch.cat([sae(row[None]).x_hat for row in x[:20]])
    assert torch.allclose(alone, sae(x).x_hat[:20], atol=1e-6)


def test_the_parallel_part_of_the_gradient_is_taken_off() -> None:
    sae = SAE(SAEConfig.of(6, 12, "topk", 2))
    sae.W_dec.grad = torch.randn(12, 6)
    sae.remove_parallel_gradient()
    assert torch.allclose((sae.W_dec.grad * sae.W_dec).sum(1), torch.zeros(12), atol=1e-6)


def test_the_geometric_median_resists_an_outlier_and_the_mean_does_not() -> None:
    x = torch.randn(201, 3)
    x[0] = 1e5
    assert geometric_median(x).norm() < 1 < x.mean(0).norm()


def test_the_geometric_median_is_where_unit_vectors_cancel() -> None:
    x = torch.randn(101, 4, dtype=torch.float64)
    away = x - geometric_median(x, steps=2000)
    assert (away / away.norm(dim=1, keepdim=True)).sum(0).norm() < 0.05
