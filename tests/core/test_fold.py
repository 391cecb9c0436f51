"""Folding is exact: the folded SAE of the data is the SAE of the treated data, undone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.errors import ConfigError
from vision_sae.fold import fold_norms, fold_scale, fold_threshold, untie
from vision_sae.sae import SAE, SAEConfig
from vision_sae.train.inputs import Inputs, whitening

close = torch.testing.assert_close


def dense(sae: SAE, x: Tensor) -> Tensor:
    return sae(x).codes.to_dense()


def skip_treated(case: Any) -> None:
    if case.config.rows != "none":
        pytest.skip("rows that are treated one by one have no common scale")


@pytest.mark.parametrize("scale", [0.03, 7.0])
def test_a_scale_changes_units_only(case: Any, scale: float) -> None:
    skip_treated(case)
    sae, x = case.sae().eval(), case.rows()
    out = 0.4 if case.config.d_out else scale
    want, codes, norms = sae(x * scale).x_hat / out, dense(sae, x * scale), sae.W_dec.norm(dim=1)
    fold_scale(sae, scale, out)
    close(sae(x).x_hat, want)
    close(dense(sae, x), codes / scale)
    close(sae.W_dec.norm(dim=1), norms * scale / out)
    assert float(sae.scale) == scale


def test_a_scale_is_undone_by_its_inverse(case: Any) -> None:
    sae, twin = case.sae(), case.sae()
    fold_scale(sae, 7.0, 0.4)
    fold_scale(sae, 1 / 7.0, 1 / 0.4)
    for name, tensor in twin.state_dict().items():
        close(sae.state_dict()[name], tensor, msg=name)
    close(sae(case.rows()).x_hat, twin(case.rows()).x_hat)


def whitener(case: Any) -> Inputs:
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return whitening(case.rows(200, seed=10) @ mixing + 2)


def test_whitening_is_undone_on_the_output(case: Any) -> None:
    skip_treated(case)
    if case.config.d_out or case.config.sparsity.kind == "mp":
        pytest.skip("refused, see below")
    sae, x, inputs = case.sae().eval(), case.rows(), whitener(case)
    treated = inputs.apply(x)
    want, codes = sae(treated).x_hat @ inputs.inverse + inputs.mean, dense(sae, treated)
    norms = sae.W_dec.norm(dim=1) if sae.config.rescale else 1
    inputs.fold(sae)
    close(sae(x).x_hat, want)
    close(dense(sae, x), codes * norms)
    assert SAEConfig.model_validate_json(sae.config.model_dump_json()) == sae.config
    again = SAE(sae.config).double().eval()
    again.load_state_dict(sae.state_dict())
    assert torch.equal(again(x).x_hat, sae(x).x_hat)


@pytest.mark.parametrize("case", ["mp", "mp-signed"], indirect=True)
def test_matching_pursuit_refuses_what_parts_its_tied_weights(case: Any) -> None:
    with pytest.raises(ConfigError, match="has tied, unit atoms: its inputs cannot be whitened"):
        whitener(case).fold(case.sae())


def competing(case: Any) -> bool:
    """Whether latents win by comparison, without their norms."""
    return case.config.sparsity.kind in ("topk", "batchtopk", "abstopk", "groupmax") and not (
        case.config.rescale
    )


def test_norms_go_from_the_atoms_to_the_codes(case: Any) -> None:
    sae, x = case.sae().eval(), case.rows()
    norms = sae.W_dec.norm(dim=1).clone()
    want, codes = sae(x).x_hat, dense(sae, x)
    if competing(case) and sae.config.atoms == "free":
        with pytest.raises(ConfigError, match="cannot be folded: its latents compete by z alone"):
            fold_norms(sae)
        return
    fold_norms(sae)
    close(sae(x).x_hat, want)
    close(dense(sae, x), codes * norms)
    close(sae.W_dec.norm(dim=1), torch.ones_like(norms))
    assert SAEConfig.model_validate_json(sae.config.model_dump_json()) == sae.config


@pytest.mark.parametrize("case", ["topk", "batchtopk-unit", "abstopk", "groupmax"], indirect=True)
def test_equal_norms_can_always_be_folded(case: Any) -> None:
    """All atoms three times as long: nobody else wins, and thresholds follow."""
    sae, x = case.sae().eval(), case.rows()
    with torch.no_grad():
        sae.W_dec.mul_(3)
    want = sae(x).x_hat
    fold_norms(sae)
    close(sae(x).x_hat, want)


BATCHED = ["batchtopk", "batchtopk-unit", "batchtopk-prefix", "batchtopk-competing"]


@pytest.mark.parametrize("choice", ["calibrated", "running"])
@pytest.mark.parametrize("case", [*BATCHED, "batchtopk-transcoder"], indirect=True)
def test_a_batchtopk_is_a_jumprelu_whose_norms_can_be_folded(case: Any, choice: Any) -> None:
    sae, x = case.sae().eval(), case.rows()
    sae.threshold_choice = choice
    want, codes, norms = sae(x).x_hat, dense(sae, x), sae.W_dec.norm(dim=1).clone()
    assert 0 < int((codes != 0).sum()) < int((sae.pre_activations(x) > 0).sum())
    fold_threshold(sae)
    assert torch.equal(dense(sae, x) != 0, codes != 0)
    close(dense(sae, x), codes)
    again = SAE(SAEConfig.model_validate_json(sae.config.model_dump_json())).double().eval()
    again.load_state_dict(sae.state_dict())
    fold_norms(again)
    close(again(x).x_hat, want)
    close(dense(again, x), codes * norms)
    close(again.W_dec.norm(dim=1), torch.ones_like(norms))


def test_without_a_threshold_there_is_no_jumprelu() -> None:
    sae = SAE(SAEConfig.of(4, 8, "batchtopk", 2))
    with pytest.raises(ConfigError, match="no inference threshold yet"):
        fold_threshold(sae)
    assert sae.threshold.isnan()


@pytest.mark.parametrize("case", ["batchtopk-unit", "batchtopk-competing"], indirect=True)
def test_a_batch_keeps_its_winners_when_norms_are_folded(case: Any) -> None:
    sae, x = case.sae().train(), case.rows()
    z = sae.pre_activations(x)
    before = dense(sae, x)
    by_z = z.flatten().topk(case.config.sparsity.k * len(x)).indices.sort().values
    fold_norms(sae)
    winners = before.flatten().nonzero()[:, 0]
    assert torch.equal(dense(sae, x).flatten().nonzero()[:, 0], winners)
    assert torch.equal(by_z, winners) != case.config.rescale  # else norms did not matter


def test_a_refusal_leaves_tied_weights_tied() -> None:
    sae = SAE(SAEConfig.of(4, 8, "batchtopk", 2, tied=True, atoms="free"))
    with torch.no_grad():
        sae.W_enc[0] *= 2
    with pytest.raises(ConfigError, match="fold_threshold first makes it a JumpReLU"):
        fold_norms(sae)
    assert sae.config.tied and sae.W_dec is sae.W_enc


def test_untied_weights_part() -> None:
    sae = SAE(SAEConfig.of(4, 8, k=2, tied=True))
    untie(sae)
    assert torch.equal(sae.W_dec, sae.W_enc) and sae.W_dec is not sae.W_enc
    assert not sae.config.tied


def test_whitened_rows_have_unit_covariance_and_come_back() -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x @ torch.diag(torch.tensor([9.0, 4, 2, 1, 0.5, 0.2], dtype=torch.float64)) + 3
    inputs = whitening(x)
    white = inputs.apply(x)
    close(torch.cov(white.T), torch.eye(6, dtype=torch.float64))
    close(white @ inputs.inverse + inputs.mean, x)


def test_whitening_does_not_blow_up_directions_without_variance() -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    x[:, 5] = 1e-6 * x[:, 5]
    white = whitening(x).apply(x)
    assert float(white[:, 5].std()) < 1e-3
    assert float(white[:, :5].std(0).min()) > 0.9


def test_rows_that_are_all_the_same_cannot_be_whitened() -> None:
    with pytest.raises(ConfigError, match="needs rows that vary; these are all the same"):
        whitening(torch.ones(10, 3))
