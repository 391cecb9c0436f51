"""Mistakes found in other libraries, one test each; the docstring says what goes wrong there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae import checkpoint, losses
from vision_sae.errors import CheckpointError, ConfigError
from vision_sae.families.jumprelu import KERNELS
from vision_sae.fold import fold_norms, fold_scale
from vision_sae.measures.metrics import evaluate
from vision_sae.sae import SAE, SAEConfig
from vision_sae.statistics import geometric_median
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, Trainer, train
from vision_sae.train.dead import resample

D, S = 6, 20


def sae_of(family: str = "topk", **options: Any) -> SAE:
    if family in ("topk", "batchtopk"):
        options.setdefault("k", 3)
    sae = SAE(SAEConfig.of(D, S, family, **options), seed=1)
    with torch.no_grad():
        for i, p in enumerate(sae.parameters()):
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return sae


def rows(n: int = 16, seed: int = 3) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def first(count: int) -> Tensor:
    """The first so many latents."""
    return torch.arange(S) < count


def trainer_of(sae: SAE, x: Tensor, **options: Any) -> Trainer:
    settings = {"steps": 10, "batch_size": 8, "dead": "none", "inputs": "none"}
    trainer = Trainer(sae, MemoryStore(x), TrainConfig.of(**settings | options))
    trainer.start()
    return trainer


def resampled(dead: Tensor, batch: int) -> tuple[SAE, SAE]:
    """Before and after."""
    sae, before = sae_of("relu"), sae_of("relu")
    trainer = trainer_of(sae, rows(64))
    before.load_state_dict(sae.state_dict())
    resample(trainer, losses.forward(sae, rows(batch), None, dead), 0.2)
    return before, sae


def test_01_resampling_changes_the_weights() -> None:
    """Written through two index operations, new weights end in a temporary copy."""
    before, after = resampled(first(4), 16)
    for name in ("W_enc", "W_dec", "b_enc"):
        changed = getattr(before, name) != getattr(after, name)
        assert torch.equal(changed.view(S, -1).any(1), first(4)), name


def test_02_more_dead_latents_than_rows_can_be_resampled() -> None:
    """With as many new rows as dead latents asked of a smaller batch, the write fails."""
    before, after = resampled(first(15), 4)
    assert int((before.W_dec != after.W_dec).any(1).sum()) == 4


@pytest.mark.parametrize("mode", ["tanh", "step"])
def test_03_both_halves_of_a_jumps_window_give_gradient(mode: str) -> None:
    """Fed with values after the jump, only what lies above the threshold teaches it."""
    for offset in (-0.05, 0.05):  # z below and above the threshold, within the window
        sae = SAE(SAEConfig.of(1, 1, "jumprelu", mode=mode, start=1.0, bandwidth=0.4))
        with torch.no_grad():
            sae.W_enc.fill_(1.0)
        p = losses.forward(sae, torch.tensor([[1.0 + offset]]))
        penalty = sae.config.sparsity.penalty(p)
        assert penalty is not None
        (losses.reconstruction(p) + penalty).backward()
        assert sae.thresholds.grad is not None
        assert float(sae.thresholds.grad) != 0.0


@pytest.mark.parametrize("term", ["auxk", "multi"])
def test_04_side_losses_train_the_encoder(term: str) -> None:
    """A fused encoder that drops the gradient of all but the first k entries trains nothing."""
    sae = sae_of(k=1, multi=3)
    p = losses.forward(sae, rows(4), None, first(10))
    loss = losses.auxk(p, 2) if term == "auxk" else losses.multi_topk(p)
    assert loss is not None
    loss.backward()
    assert sae.W_enc.grad is not None
    reached = sae.W_enc.grad.any(1)
    chosen = torch.zeros(S, dtype=torch.bool)
    chosen[sae.encode(rows(4)).indices] = True
    assert bool((reached & ~chosen).any())


def test_05_dead_latents_predict_the_residual_without_bias() -> None:
    """The residual has lost b_dec already; a full decode adds it again."""
    sae, shifted = sae_of(), sae_of()
    with torch.no_grad():
        shifted.b_dec += 7.0  # the same centred input: only a decoded bias could change the loss
    one = losses.auxk(losses.forward(sae, rows(), None, first(10)), 3)
    other = losses.auxk(losses.forward(shifted, rows() + 7.0, None, first(10)), 3)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_06_the_gates_own_reconstruction_does_not_train_the_decoder() -> None:
    """Through a live decoder, W_dec and b_dec learn to please the gate."""
    sae = sae_of("gated")
    penalty = sae.config.sparsity.penalty(losses.forward(sae, rows()))
    assert penalty is not None
    penalty.backward()
    assert sae.W_dec.grad is None
    twin = sae_of("gated")  # b_dec is reached through the centring of x only
    z = (rows() - twin.b_dec) @ twin.W_enc.T + twin.b_enc
    guess = z.relu() @ twin.W_dec.detach() + twin.b_dec.detach()
    (5.0 * z.relu().sum() + (rows() - guess).square().sum()).div(16).backward()
    torch.testing.assert_close(sae.b_dec.grad, twin.b_dec.grad, rtol=1e-3, atol=1e-4)
    assert bool(sae.b_enc.grad.any()) and bool(sae.W_enc.grad.any())  # type: ignore[union-attr]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bandwidth", [0.5, 2.0])
def test_07_a_kernel_integrates_to_one_whatever_its_bandwidth(
    kernel: str, bandwidth: float
) -> None:
    """Divided by the bandwidth twice, or not at all, the gradient has another size."""
    sae = SAE(SAEConfig.of(1, 1, "jumprelu", mode="step", coefficient=1.0, start=20.0,
                           kernel=kernel, bandwidth=bandwidth))  # fmt: skip
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
    x = torch.linspace(10, 30, 20001)[:, None]
    p = losses.forward(sae, x)
    penalty = sae.config.sparsity.penalty(p)
    assert penalty is not None
    penalty.backward()
    assert sae.thresholds.grad is not None
    # d(mean L0) / d theta = -integral / 20, the rows being spread over a length of 20
    assert 20 * float(sae.thresholds.grad) == pytest.approx(-1.0, rel=5e-3)
    assert KERNELS[kernel][0] * bandwidth < 10  # all of it was sampled


def test_08_the_running_threshold_is_saved_and_does_not_know_the_batch_size(
    tmp_path: Path,
) -> None:
    """A plain attribute is lost on saving; k per batch means something else for another batch."""
    found = []
    for batch in (64, 256):
        sae = sae_of("batchtopk")
        trainer = trainer_of(sae, rows(1024), batch_size=batch, lr=1e-9, ema=None)
        for x, _ in zip(trainer.source.batches(batch), range(4), strict=False):
            trainer.train_step(x)
        found.append(float(sae.threshold_ema))
    assert found[0] == pytest.approx(found[1], rel=0.1)
    sae.threshold.fill_(0.123)
    checkpoint.save(sae, tmp_path / "sae")
    again = checkpoint.load(tmp_path / "sae")
    assert torch.equal(again.threshold_ema, sae.threshold_ema)
    assert torch.equal(again.threshold, sae.threshold)


def test_09_auxk_is_a_share_of_the_residuals_variance_or_saelens_sum() -> None:
    """Undivided, its weight depends on the scale of the data."""
    values = {}
    for form in ("openai", "saelens"):
        for scale in (1.0, 10.0):
            sae = sae_of()
            fold_scale(sae, 1 / scale)
            p = losses.forward(sae, rows() * scale, None, first(10))
            values[form, scale] = float(losses.auxk(p, 3, form=form).detach())
    assert values["openai", 10.0] == pytest.approx(values["openai", 1.0], rel=1e-3)
    assert values["saelens", 10.0] == pytest.approx(100 * values["saelens", 1.0], rel=1e-3)


def test_10_explained_variance_does_not_depend_on_the_batches() -> None:
    """Averaged over batches of their own variance, or flat, or by rows, it does."""
    sae, x = sae_of().eval(), rows(60) * torch.linspace(0.1, 4, 60)[:, None] + 2
    whole = evaluate(sae, [x]).fvu
    for size in (1, 7, 30):
        assert evaluate(sae, x.split(size)).fvu == pytest.approx(whole, rel=1e-5)
    error = (x - sae(x).x_hat.detach()).square().sum()
    assert whole == pytest.approx(float(error / (x - x.mean(0)).square().sum()), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "rows"])
def test_11_updates_below_the_resolution_of_bfloat16_are_kept(optimizer: str) -> None:
    """Parameters in bfloat16 do not move by a small learning rate."""
    sae = sae_of("batchtopk", atoms="free")
    before = sae.W_dec.detach().clone()
    trainer = trainer_of(sae, rows(64), precision="bfloat16", lr=1e-7, optimizer=optimizer)
    for x, _ in zip(trainer.source.batches(8), range(3), strict=False):
        trainer.train_step(x)
    moved = (sae.W_dec.detach() - before).abs()
    assert 0 < float(moved.max()) < 1e-4
    assert torch.equal(sae.W_dec.bfloat16(), before.bfloat16())  # a bfloat16 would have stayed
    moments = [t for state in trainer.optimizer.state.values() for t in state.values()]
    assert {t.dtype for t in [*moments, *sae.parameters(), sae.threshold_ema]} == {torch.float32}


def test_12_checkpoints_on_the_way_are_in_the_datas_units(tmp_path: Path) -> None:
    """Saved unfolded, or with b_dec scaled the wrong way, they read other data."""
    x = rows(256) * 40 + 100
    config = TrainConfig(steps=20, batch_size=32, lr=0.02, series=1)
    finished = train(sae_of("batchtopk"), MemoryStore(x), config, folder=tmp_path)
    on_the_way = [checkpoint.load(p) for p in sorted((tmp_path / "series").iterdir())]
    assert len(on_the_way) == 2
    for sae in (*on_the_way, finished):
        assert evaluate(sae, [x]).fvu < 1.1
        assert float((sae.b_dec.detach() - x.mean(0)).norm()) < 0.5 * float(x.std())
        assert float(sae.scale) == pytest.approx(float(finished.scale))
    one = sae_of("batchtopk")
    fold_scale(one, 3.0)
    fold_scale(one, 1 / 3.0)
    for name, tensor in sae_of("batchtopk").state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], tensor, equal_nan=True)


@pytest.mark.parametrize("other", ["batchtopk", "relu", "jumprelu", "gated"])
def test_13_weights_do_not_load_into_another_architecture(other: str, tmp_path: Path) -> None:
    """Where names and shapes happen to fit, they load silently."""
    checkpoint.save(sae_of("gated"), tmp_path / "gated")
    checkpoint.save(sae_of("topk"), tmp_path / "topk")
    checkpoint.save(sae_of(other), tmp_path / other, overwrite=True)
    for name in ("topk", "gated"):
        if name == other:
            continue
        folder = tmp_path / other
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text((tmp_path / name / "config.json").read_text())
        if {name, other} != {"topk", "relu"}:  # these two have the same tensors
            with pytest.raises(CheckpointError, match="does not fit its config"):
                checkpoint.load(folder)
        (folder / "config.json").write_text(config)
    assert checkpoint.load(tmp_path / other).config.sparsity.kind == other


@pytest.mark.parametrize("training", [True, False])
def test_14_images_by_tokens_are_rows(training: bool) -> None:
    """Over the wrong axes, the budget of a batch is another."""
    sae = sae_of("batchtopk").train(training)
    sae.threshold.fill_(0.7)
    x = rows(12)
    flat = sae.encode(x)
    for shape in ((3, 4, D), (2, 3, 2, D)):
        codes = sae.encode(x.view(shape))
        assert torch.equal(codes.to_dense(), flat.to_dense())
        if training:
            assert int(codes.l0.sum()) == 12 * 3


def test_15_a_threshold_that_was_never_set_is_refused() -> None:
    """Left at zero, inference keeps everything."""
    sae = sae_of("batchtopk").eval()
    with pytest.raises(ConfigError, match="no inference threshold yet"):
        sae(rows())


def test_16_the_nested_loss_is_the_mean_of_its_parts_or_their_sum() -> None:
    """Divided by their number twice, it counts too little beside the other losses."""
    shares = (0.25, 0.5, 0.75, 1.0)
    found = {}
    for reduction in ("mean", "sum"):
        nest = {"kind": "prefix", "shares": shares, "reduction": reduction}
        sae = sae_of(k=5, nest=nest)
        found[reduction] = float(losses.reconstruction(losses.forward(sae, rows())).detach())
    f, x = sae.encode(rows()).to_dense(), rows()
    spread = (x - x.mean(0)).square().sum()
    parts = [
        (x - f[:, :m] @ sae.W_dec[:m] - sae.b_dec).square().sum() / spread for m in (5, 10, 15, 20)
    ]
    assert found["sum"] == pytest.approx(float(sum(parts).detach()), rel=1e-4)  # type: ignore[union-attr]
    assert found["mean"] == pytest.approx(found["sum"] / 4, rel=1e-4)


def test_17_the_geometric_median_is_not_the_mean() -> None:
    """A mean by that name is drawn away by one row."""
    x = torch.tensor([[0.0], [0.0], [0.0], [100.0]])
    assert float(geometric_median(x)) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("family", ["topk", "batchtopk", "groupmax"])
def test_18_zeros_that_were_chosen_are_not_active(family: str) -> None:
    """Where fewer latents are positive than may be kept, zeros fill up and count as active."""
    sae = sae_of(family, k=4)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
        sae.b_enc[7] = 100.0
    codes = sae.encode(rows(5))
    assert codes.l0.tolist() == [1] * 5
    assert codes.fired().nonzero()[:, 0].tolist() == [7]


def test_19_evaluation_and_back_leaves_training_as_it_was() -> None:
    """A setting that evaluation overwrites is not there when training goes on."""
    one, other = (trainer_of(sae_of("mp", k=3), rows(64)) for _ in range(2))
    one.sae.eval()(rows())
    evaluate(one.sae, [rows()])
    one.sae.train()
    for trainer in (one, other):
        trainer.train_step(rows(8))
    assert torch.equal(one.sae.W_dec, other.sae.W_dec)


def test_20_norms_are_not_folded_where_latents_compete_without_them() -> None:
    """Folded anyway, other latents win; and codes are z, not z times norm."""
    with pytest.raises(ConfigError, match="compete by z alone"):
        fold_norms(sae_of(atoms="free"))
    sae = sae_of(atoms="free", rescale=True).eval()
    before, norms = sae(rows()), sae.W_dec.norm(dim=1)
    z = sae.pre_activations(rows())
    codes = before.codes
    kept = codes.active
    torch.testing.assert_close(codes.values[kept], z[codes.rows, codes.indices][kept])
    fold_norms(sae)
    after = sae(rows())
    torch.testing.assert_close(after.x_hat, before.x_hat)
    torch.testing.assert_close(after.codes.to_dense(), before.codes.to_dense() * norms)
    assert not sae.config.rescale and sae.config.atoms == "unit"


def test_20_a_threshold_on_z_times_norm_needs_no_change() -> None:
    """Divided with the rest, BatchTopK keeps other latents."""
    sae = sae_of("batchtopk", atoms="free", rescale=True).eval()
    sae.threshold.fill_(0.8)
    before = sae(rows())
    fold_norms(sae)
    assert float(sae.threshold) == pytest.approx(0.8)
    assert torch.equal(sae(rows()).codes.l0, before.codes.l0)
