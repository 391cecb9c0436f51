"""The training loop: it learns, whatever the variant, keeps what it promises, stops on bad data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae import checkpoint
from vision_sae.errors import CheckpointError, ConfigError, DataError
from vision_sae.families.jumprelu import JumpReLU
from vision_sae.measures import metrics
from vision_sae.measures.metrics import evaluate
from vision_sae.sae import SAE, SAEConfig
from vision_sae.source import Batch
from vision_sae.store import MemoryStore
from vision_sae.train import Run, TrainConfig, Trainer, train, train_all
from vision_sae.train.resume import load_state, save_state, state_tensors

Advance = Callable[[Trainer, int], list[dict[str, float]]]
SHORT = TrainConfig(steps=12, batch_size=32, lr=1e-3, dead_after=64)


def small_sae(family: str = "topk", seed: int = 0, **options: Any) -> SAE:
    k = 2 if family in ("topk", "batchtopk") else None
    return SAE(SAEConfig.of(16, 48, family, k, **options), seed=seed)


def noise(n: int = 200) -> Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(1))


def short(**options: Any) -> TrainConfig:
    return TrainConfig.of(**{"steps": 12, "batch_size": 32, "lr": 1e-3, "dead_after": 64} | options)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit; NaN is the same as NaN."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, equal_nan=True, msg=name)


def whitened(case: Any) -> bool:
    """Whether inputs may be whitened."""
    return case.config.rows == "none" and not case.config.d_out and "mp" not in case.name


# ---- every variant


# one variant of each kind: for what does not depend on the others
EACH = ["topk", "topk-archetypal", "topk-competing", "batchtopk", "batchtopk-prefix", "abstopk",
        "groupmax", "relu", "panneal", "jumprelu-step", "gated", "mp"]  # fmt: skip


def test_training_lowers_the_loss(case: Any, advance: Advance) -> None:
    assert_lowered(case, "scale", advance)


@pytest.mark.parametrize("case", [*EACH, "topk-transcoder", "topk-layer_norm"], indirect=True)
@pytest.mark.parametrize("inputs", ["none", "whiten"])
def test_other_treatments_of_inputs_lower_it_too(case: Any, inputs: str, advance: Advance) -> None:
    if inputs == "none" or whitened(case):
        assert_lowered(case, inputs, advance)


def assert_lowered(case: Any, inputs: str, advance: Advance) -> None:
    trainer = case.trainer(inputs=inputs, steps=40, lr=0.02, dead="none", sparsity_warmup=0)
    numbers = advance(trainer, 40)
    first, last = numbers[:4], numbers[-4:]
    assert sum(n["fvu"] for n in last) < 0.9 * sum(n["fvu"] for n in first)
    if "anneal" not in case.name:  # the penalty itself changes, or codes get fewer
        assert sum(n["loss"] for n in last) < sum(n["loss"] for n in first)
    sae = trainer.finish()
    assert not sae.training
    if sae.config.atoms == "unit":
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.config.s))


@pytest.mark.parametrize("inputs", ["scale", "whiten"])
def test_what_is_learnt_on_treated_inputs_is_returned_for_the_data(
    case: Any, inputs: str, advance: Advance
) -> None:
    """finish() folds: its outputs are those in training, undone."""
    if inputs == "whiten" and not whitened(case):
        pytest.skip("refused")
    trainer = case.trainer(inputs=inputs)
    advance(trainer, 3)
    x = case.source().all[:20]
    family = trainer.sae.config.sparsity
    k = family.k if "k" in type(family).model_fields else None
    treated = trainer.inputs.apply(x)
    codes = trainer.sae.eval().encoded(treated, k=k).codes
    rows, undo = trainer.sae.treated(treated)
    want = undo(trainer.sae.decode(codes) + trainer.sae.skipped(rows))
    if case.config.d_out:
        want = want / float(trainer.inputs.scale_out)
    elif trainer.inputs.matrix is not None:
        want = want @ trainer.inputs.inverse + trainer.inputs.mean
    else:
        want = want / float(trainer.inputs.scale)
    sae = trainer.finish()
    got = sae.decode(sae.encoded(x, k=k).codes) + sae.skipped(x)
    if case.config.rows != "none":
        got = sae(x).x_hat
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_a_resumed_training_is_the_same_bit_for_bit(
    case: Any, advance: Advance, tmp_path: Path
) -> None:
    """Weights, moments, counters, thresholds, the penalty's memory, the average and the best."""
    assert_resumed(case, "adam", advance, tmp_path)


@pytest.mark.parametrize("case", [name for name in EACH if "archetypal" not in name], indirect=True)
def test_the_lean_optimizer_resumes_bit_for_bit_too(
    case: Any, advance: Advance, tmp_path: Path
) -> None:
    assert_resumed(case, "rows", advance, tmp_path)


def assert_resumed(case: Any, optimizer: str, advance: Advance, tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "ema": 0.9, "validate_every": 3}
    held_out = None if case.config.d_out else case.source().all[:40]
    whole, first, second = (case.trainer(seed, **options) for seed in (0, 0, 1))
    for trainer in (whole, first, second):
        trainer.validation = held_out
    advance(whole, 8)
    advance(first, 4)
    save_state(first, tmp_path)
    load_state(second, tmp_path)
    assert second.step == 4 and second.best.fvu == first.best.fvu
    assert_same(state_tensors(second), state_tensors(first))
    advance(second, 4)
    assert_same(state_tensors(second), state_tensors(whole))
    assert whole.best.weights or held_out is None
    assert_same(second.finish().state_dict(), whole.finish().state_dict())


def test_bfloat16_follows_float32(case: Any, advance: Advance) -> None:
    """Parameters stay in float32, and after some steps the two are about as good."""
    found = {}
    for precision in ("float32", "bfloat16"):
        trainer = case.trainer(precision=precision, steps=20, lr=0.01)
        numbers = advance(trainer, 20)
        for name, tensor in trainer.sae.named_parameters():
            assert tensor.dtype == torch.float32 and bool(tensor.isfinite().all()), name
        found[precision] = sum(n["fvu"] for n in numbers[-4:]) / 4
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.1, abs=0.02)


@pytest.mark.parametrize("options", [{"family": "relu"}, {"rescale": True, "atoms": "free"}])
def test_screening_is_refused_where_it_would_do_nothing(options: dict[str, Any]) -> None:
    config = TrainConfig.of(precision="screened")
    with pytest.raises(ConfigError, match="'screened' is for topk whose latents compete by z"):
        Trainer(SAE(SAEConfig.of(6, 12, **options)), MemoryStore(torch.randn(64, 6)), config)


@pytest.mark.parametrize("case", ["topk", "topk-tied"], indirect=True)
def test_screening_changes_no_step(case: Any, advance: Advance) -> None:
    one, other = (case.trainer(precision=p) for p in ("float32", "screened"))
    for trainer in (one, other):
        advance(trainer, 4)
    for name, tensor in one.sae.state_dict().items():
        torch.testing.assert_close(tensor, other.sae.state_dict()[name], msg=name)


@pytest.mark.parametrize(
    "case",
    ["topk", "topk-multi", "topk-nest-random", "abstopk", "groupmax", "relu", "relu-p",
     "jumprelu-tanh", "jumprelu-step", "jumprelu-target", "gated", "mp"],
    indirect=True,
)  # fmt: skip
@pytest.mark.parametrize("dead", ["none", "auxk", "ghost", "preact"])
def test_a_batch_in_pieces_gives_the_same_step(case: Any, dead: str, advance: Advance) -> None:
    """Gradient accumulation; losses that are not sums over rows agree nearly."""
    one, other = (case.trainer(pieces=p, dead=dead, sparsity_warmup=0) for p in (1, 4))
    x = next(case.source().batches(32))
    gradients = []
    for trainer in (one, other):
        trainer.since_fired[::2] = 10**6
        trainer.optimizer.step = lambda: None
        trainer.train_step(x)
        gradients.append(torch.cat([
            torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
            for p in trainer.sae.parameters()
        ]))  # fmt: skip
    exact = dead in ("none", "preact") and case.name != "jumprelu-target"
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert float(difference) < (1e-4 if exact else 0.25)
    torch.testing.assert_close(one.since_fired, other.since_fired)


# ---- results


def planted(n: int = 4000, d: int = 16, features: int = 24) -> tuple[Tensor, Tensor]:
    """Sparse sums of known directions, off centre and in odd units."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(features, d, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    on = torch.rand(n, features, generator=generator) < 0.06
    strength = 0.5 + torch.rand(n, features, generator=generator)
    return 7.0 * ((on * strength) @ directions) + 3.0, directions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("topk", {}),
        ("batchtopk", {}),
        ("relu", {"coefficient": 0.5}),
        (
            "jumprelu",
            {"mode": "tanh", "coefficient": 2.0, "start": 0.1, "bandwidth": 2.0, "to_input": True},
        ),
        ("gated", {"coefficient": 4.0}),
    ],
)
def test_training_finds_the_planted_directions(family: str, options: dict[str, Any]) -> None:
    x, directions = planted()
    config = TrainConfig(steps=800, batch_size=256, lr=5e-3)
    sae = train(small_sae(family, **options), MemoryStore(x), config)
    found = (torch.nn.functional.normalize(sae.W_dec.detach(), dim=1) @ directions.T).max(0).values
    assert (found > 0.9).float().mean() > 0.8
    assert evaluate(sae, x.split(512)).fvu < 0.25


@pytest.mark.parametrize("target", [2.0, 3.0])
def test_jumprelu_starts_at_its_target_and_stays_there(target: float) -> None:
    x, _ = planted()
    sae = small_sae("jumprelu", mode="target", target=target)
    trainer = Trainer(sae, MemoryStore(x), TrainConfig(steps=600, batch_size=256, lr=3e-3))
    trainer.start()
    treated = trainer.inputs.apply(x)
    active = sae.pre_activations(treated) > sae.thresholds
    s = sae.config.s  # each latent fires on its share of the rows
    assert float(active.float().mean(0).sub(target / s).abs().max()) <= 2 / len(x)
    trained = train(sae, MemoryStore(x), trainer.config)
    assert evaluate(trained, [x]).l0 == pytest.approx(target, rel=0.2)


def test_only_the_target_mode_learns_thresholds_from_rows_and_faster() -> None:
    x, _ = planted()
    for mode, rate in (("step", 1.0), ("tanh", 1.0), ("target", 4.0)):
        trainer = Trainer(small_sae("jumprelu", mode=mode), MemoryStore(x), short())
        trainer.start()
        assert bool((trainer.sae.thresholds == 0.03).all()) == (mode != "target")
        names = [name for name, _ in trainer.sae.named_parameters()]
        rates = {n: g["rate"] for n, g in zip(names, trainer.optimizer.param_groups, strict=True)}
        assert (rates["thresholds"], rates["W_enc"], rates["b_enc"]) == (rate, 1.0, 1.0)
    assert JumpReLU(threshold_rate=16.0).rates() == {"b_enc": 1.0, "thresholds": 16.0}


def test_training_returns_the_datas_units() -> None:
    sae = train(small_sae(), MemoryStore(noise() * 50 + 9), short(steps=30))
    assert float((sae.b_dec.detach() - 9).norm()) < 0.5 * 50
    assert evaluate(sae, [noise() * 50 + 9]).fvu < 1
    assert float(sae.scale) == pytest.approx(4 / float(noise().norm(dim=1).mean() * 50), rel=0.1)


@pytest.mark.parametrize("nest", [None, {"kind": "k", "ks": (1,)}, {"kind": "k", "ks": (1, 4)}])
def test_a_trained_batchtopk_has_its_mean_l0_of_k(nest: dict[str, Any] | None) -> None:
    sae = train(small_sae("batchtopk", nest=nest), MemoryStore(noise()), SHORT)
    if nest:
        assert int(sae.encode(noise(), k=1).l0.max()) == 1
    assert evaluate(sae, [noise()]).l0 == pytest.approx(2, abs=0.01)
    assert float(sae.threshold_ema) > 0


def test_equal_seeds_give_equal_runs_and_others_others() -> None:
    one, two = (train(small_sae(), MemoryStore(noise()), SHORT) for _ in range(2))
    other = train(small_sae(), MemoryStore(noise()), short(seed=1))
    assert torch.equal(one.W_enc, two.W_enc) and not torch.equal(one.W_enc, other.W_enc)


@pytest.mark.parametrize(("centre", "at"), [("mean", 100.0), ("median", 0.0), ("zero", 0.0)])
def test_b_dec_starts_at_the_centre_of_the_data(centre: str, at: float) -> None:
    """One row far away moves the mean and not the geometric median."""
    x = noise()
    x[0] = 100.0 * len(x)
    trainer = Trainer(small_sae(), MemoryStore(x), short(centre=centre, inputs="none"))
    trainer.start()
    want = torch.full((16,), at)
    torch.testing.assert_close(trainer.sae.b_dec.detach(), want, atol=0.5, rtol=0)


def test_inputs_have_a_mean_distance_of_root_d_from_their_centre() -> None:
    trainer = Trainer(small_sae(), MemoryStore(noise() * 50 + 9), short(centre="mean"))
    trainer.start()
    away = trainer.inputs.apply(noise() * 50 + 9) - trainer.sae.b_dec.detach()
    assert float(away.norm(dim=1).mean()) == pytest.approx(4.0, rel=1e-4)


def test_archetypes_start_at_data_points() -> None:
    """k-means centres, most of which find a cluster."""
    centres = 5 * torch.eye(16)[:6]
    x = centres.repeat(30, 1) + 0.01 * noise(180)
    sae = SAE(SAEConfig.of(16, 12, k=2, dictionary={"kind": "archetypal", "points": 12}))
    trainer = Trainer(sae, MemoryStore(x), short(inputs="none"))
    trainer.start()
    points = sae.parametrizations.W_dec[0].C + sae.b_dec.detach()  # type: ignore[union-attr,index]
    assert float(torch.cdist(points, centres).min(1).values.median()) < 0.1
    torch.testing.assert_close(sae.W_enc, torch.nn.functional.normalize(sae.W_dec, dim=1))


# ---- schedules


def test_the_learning_rate_warms_up_and_decays() -> None:
    config = TrainConfig(steps=100, warmup=0.1, decay=0.2)
    factors = [config.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == factors[80] == 1.0
    assert factors[-1] == pytest.approx(1 / 20)
    assert all(a >= b for a, b in zip(factors[80:], factors[81:], strict=False))


def test_a_cosine_decay_is_flat_at_both_ends() -> None:
    config = TrainConfig(steps=100, warmup=0, decay=1, schedule="cosine")
    assert config.factor(50) == pytest.approx(0.5)
    assert config.factor(5) > 0.99 and config.factor(95) < 0.01


def test_the_usual_learning_rate_falls_with_the_root_of_the_latents() -> None:
    assert TrainConfig().learning_rate(2**14) == pytest.approx(2e-4)
    assert TrainConfig().learning_rate(2**16) == pytest.approx(1e-4)
    assert TrainConfig(lr=3.0).learning_rate(2**16) == 3.0


def test_penalties_rise_over_their_share_of_the_steps() -> None:
    config = TrainConfig(steps=100, sparsity_warmup=0.5)
    assert [config.penalty_factor(step) for step in (0, 24, 49, 99)] == [0.02, 0.5, 1.0, 1.0]
    assert TrainConfig(steps=100, sparsity_warmup=0).penalty_factor(0) == 1.0


def test_the_usual_dead_after_is_a_hundredth_of_the_run_within_bounds() -> None:
    assert TrainConfig(steps=100, batch_size=50).rows_until_dead() == 8 * 50
    assert TrainConfig(steps=2000, batch_size=50).rows_until_dead() == 20 * 50
    assert TrainConfig(steps=10**6, batch_size=4096).rows_until_dead() == 10_000_000
    assert TrainConfig(dead_after=7).rows_until_dead() == 7


def test_k_falls_linearly_over_its_share(advance: Advance) -> None:
    config = SAEConfig.of(16, 48, "topk", 2, anneal_from=10, anneal_share=0.5)
    ks = [config.sparsity.k_at(progress) for progress in (0, 0.25, 0.5, 1)]
    assert ks == [10, 6, 2, 2]
    trainer = Trainer(SAE(config), MemoryStore(noise()), short(steps=8))
    trainer.start()
    most = [n["l0"] for n in advance(trainer, 8)]
    assert most == sorted(most, reverse=True) and most[0] == 10 and most[-1] == 2


def test_p_falls_in_steps_and_the_penalty_does_not_jump(advance: Advance) -> None:
    """At each change of p the coefficient is rescaled by the penalties just before it."""
    options = {"coefficient": 1.0, "updates": 4, "anneal_from": 0.5}
    sae = small_sae("panneal", **options)
    family: Any = sae.config.sparsity
    assert [family.updates_at(p) for p in (0, 0.49, 0.5, 0.63, 0.99)] == [0, 0, 1, 2, 4]
    assert [round(family.p_at(u), 3) for u in (0, 2, 4, 9)] == [1.0, 0.6, 0.2, 0.2]
    config = short(steps=40, sparsity_warmup=0, lr=1e-6, batch_size=200)
    trainer = Trainer(sae, MemoryStore(noise()), config)
    trainer.start()
    penalties = [n["penalty"] for n in advance(trainer, 40)]
    for before, after in zip(penalties, penalties[1:], strict=False):
        assert after == pytest.approx(before, rel=1e-3)
    assert int(trainer.penalty_state["updates"]) == 4
    assert float(trainer.penalty_state["factor"]) != 1.0


# ---- averages, the best, series


def test_the_average_of_constant_weights_is_those_weights(advance: Advance) -> None:
    trainer = Trainer(small_sae(), MemoryStore(noise()), short(ema=0.9, inputs="none", lr=1e-30))
    trainer.start()
    before = trainer.sae.W_enc.detach().clone()
    advance(trainer, 3)
    torch.testing.assert_close(trainer.snapshot().W_enc.detach(), before)


def test_the_average_is_the_bias_corrected_mean_of_past_weights(advance: Advance) -> None:
    trainer = Trainer(
        small_sae(atoms="free"), MemoryStore(noise()), short(ema=0.5, inputs="none", lr=0.1)
    )
    trainer.start()
    seen = []
    for _ in range(3):
        advance(trainer, 1)
        seen.append(trainer.sae.W_dec.detach().clone())
    want = (seen[0] * 1 + seen[1] * 2 + seen[2] * 4) / 7
    torch.testing.assert_close(trainer.snapshot().W_dec.detach(), want)
    assert torch.equal(trainer.sae.W_dec, seen[2])  # training itself is not touched


def test_averaged_atoms_have_unit_norm() -> None:
    sae = train(small_sae(), MemoryStore(noise()), short(ema=0.9, lr=0.1))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_best_weights_on_held_out_rows_are_the_result(
    ema: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when weights are averaged: what was measured is what is returned."""
    measured: list[tuple[float, Tensor]] = []
    usual = metrics.evaluate

    def spy(sae: SAE, batches: Any, **how: Any) -> Any:
        result = usual(sae, batches, **how)
        measured.append((result.fvu, sae.b_dec.detach().clone()))
        return result

    monkeypatch.setattr(metrics, "evaluate", spy)
    config = short(steps=60, lr=0.5, validate_every=1, inputs="none", patience=3, ema=ema, decay=0)
    sae = train(small_sae(), MemoryStore(noise()), config, validation=noise(50))
    best = min(range(len(measured)), key=lambda i: measured[i][0])
    assert len(measured) == best + 4 < 60  # three validations without a gain
    torch.testing.assert_close(sae.b_dec.detach(), measured[best][1])
    assert usual(sae, [noise(50)]).fvu == pytest.approx(measured[best][0], rel=1e-4)


@pytest.mark.parametrize("family", ["topk", "batchtopk"])
def test_a_series_of_checkpoints_is_evenly_spaced_on_a_log_scale(
    family: str, tmp_path: Path
) -> None:
    x = noise() * 50 + 9
    config = short(steps=40, series=2, lr=0.01)
    train(small_sae(family), MemoryStore(x), config, folder=tmp_path)
    places = sorted((tmp_path / "series").iterdir())
    assert [p.name for p in places] == [f"step-{n:07d}" for n in (1, 3, 10, 32)]
    saes = [checkpoint.load(place) for place in places]
    fvus = [evaluate(sae, [x]).fvu for sae in saes]  # in the data's units
    assert fvus == sorted(fvus, reverse=True) and fvus[0] < 1.2
    assert all(float((sae.b_dec.detach() - 9).norm()) < 25 for sae in saes)


def test_a_snapshot_does_not_change_the_training(advance: Advance) -> None:
    one, other = (Trainer(small_sae("batchtopk"), MemoryStore(noise()), short()) for _ in range(2))
    for trainer in (one, other):
        trainer.start()
        advance(trainer, 2)
    one.snapshot()
    for trainer in (one, other):
        advance(trainer, 2)
    assert_same(state_tensors(one), state_tensors(other))


# ---- fine-tuning


def test_fine_tuning_starts_from_the_same_reconstruction(case: Any) -> None:
    """The trained SAE is brought into the units of the treated inputs, and back at the end."""
    sae = train(case.new(), case.source(), case.settings())
    x = case.source().all[:50]
    before = sae(x).x_hat.detach()
    trainer = Trainer(sae, case.source(), case.settings())
    trainer.start(fresh=False)
    assert float(trainer.inputs.scale) != 1.0 or case.config.rows != "none"
    torch.testing.assert_close(trainer.finish()(x).x_hat, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "options"), [("topk", {}), ("batchtopk", {}), ("relu", {"coefficient": 0.1})]
)
def test_fine_tuning_goes_on_getting_better(family: str, options: dict[str, Any]) -> None:
    source = MemoryStore(noise() * 50 + 9)
    sae = train(small_sae(family, **options), source, short(steps=40, lr=0.01))
    before = evaluate(sae, [source.all]).fvu
    again = train(sae, source, short(steps=40, lr=0.01), finetune=True)
    assert again is sae and evaluate(again, [source.all]).fvu < before
    assert float(again.scale) == pytest.approx(float(train(small_sae(), source, SHORT).scale))


def test_fine_tuning_does_not_whiten() -> None:
    with pytest.raises(ConfigError, match="goes on with inputs='scale' or 'none', not 'whiten'"):
        train(small_sae(), MemoryStore(noise()), short(inputs="whiten"), finetune=True)


# ---- many in one pass


class Spy(MemoryStore):
    """Counts what is read."""

    streams = read = 0

    def batches(self, *arguments: Any, **named: Any) -> Any:
        self.streams += 1
        for batch in super().batches(*arguments, **named):
            self.read += 1
            yield batch

    def sample(self, n: int, *, seed: int = 0) -> Batch:
        return next(MemoryStore(self.all).batches(n, seed=seed))


@pytest.mark.parametrize("other", ["topk", "batchtopk", "relu"])
def test_two_in_one_pass_are_two_by_themselves_and_rows_are_read_once(other: str) -> None:
    spy = Spy(noise())
    both = train_all([Run(small_sae(), spy, SHORT), Run(small_sae(other, 1), spy, short(lr=0.1))])
    assert (spy.streams, spy.read) == (1, 12)
    one = train(small_sae(), MemoryStore(noise()), SHORT)
    two = train(small_sae(other, 1), MemoryStore(noise()), short(lr=0.1))
    assert_same(both[0].state_dict(), one.state_dict())
    assert_same(both[1].state_dict(), two.state_dict())


@pytest.mark.parametrize("shorter", [3, 5, 12])
def test_runs_of_other_lengths_seeds_and_sizes_keep_their_own_rows(
    shorter: int, tmp_path: Path
) -> None:
    """Also when they resume at different steps and the one behind is done before it catches up."""
    configs = [short(steps=shorter), SHORT, short(seed=3), short(batch_size=16, ema=0.5)]
    ahead = Trainer(small_sae(), MemoryStore(noise()), SHORT)
    ahead.start()
    for batch in list(zip(range(5), ahead.source.batches(32), strict=False)):
        ahead.train_step(batch[1])
        ahead.step += 1
    save_state(ahead, tmp_path / "1")
    source = MemoryStore(noise())
    together = train_all(
        [Run(small_sae(), source, c, tmp_path / str(i)) for i, c in enumerate(configs)]
    )
    for sae, config in zip(together, configs, strict=True):
        alone = train(small_sae(), MemoryStore(noise()), config)
        assert_same(sae.state_dict(), alone.state_dict())


def test_everyone_reports_and_is_made_safe() -> None:
    logs: dict[str, list[int]] = {"a": [], "b": []}
    done: list[SAE] = []
    runs = [
        Run(
            small_sae(),
            MemoryStore(noise()),
            short(steps=steps),
            on_log=lambda step, numbers, name=name: logs[name].append(step),
            on_finish=done.append,
        )
        for name, steps in (("a", 4), ("b", 6))
    ]
    trained = train_all(runs, log_every=2)
    assert done == trained == [run.sae for run in runs]
    assert logs == {"a": [0, 2], "b": [0, 2, 4]}


# ---- bad data, other settings


class Poisoned(MemoryStore):
    """A tensor whose rows are bad; the sample that training starts from is not."""

    def sample(self, n: int, *, seed: int = 0) -> Batch:
        return noise()


def poisoned(row: int = 77, value: float = float("nan")) -> Poisoned:
    x = noise()
    x[row, 3] = value
    return Poisoned(x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "family", ["topk", "batchtopk", "abstopk", "relu", "jumprelu", "gated", "mp", "groupmax"]
)
def test_bad_numbers_stop_a_training_and_are_located(
    family: str, value: float, tmp_path: Path
) -> None:
    """The message names the step and the row of the store; the last good state stays."""
    source = poisoned(value=value)
    step, at = next((i, order) for i, order in enumerate(orders(source)) if 77 in order)
    assert step  # else the test shows less
    message = rf"NaN or infinity in 1 of 32 rows of step {step}; the first is row 77$"
    with pytest.raises(DataError, match=message):
        train(small_sae(family), source, SHORT, folder=tmp_path, checkpoint_seconds=-1)
    assert len(at) == 32
    resumed = Trainer(small_sae(family), MemoryStore(noise()), SHORT)
    load_state(resumed, tmp_path)
    assert resumed.step == step
    for name, tensor in resumed.sae.named_parameters():
        assert bool(tensor.isfinite().all()), name


def orders(source: MemoryStore) -> Any:
    return MemoryStore(torch.arange(float(source.rows))[:, None]).batches(32)


def test_a_source_that_cannot_locate_rows_names_the_batch() -> None:
    class Plain(Poisoned):
        locate = None  # type: ignore[assignment]

    with pytest.raises(DataError, match=r"the first is row \d+ of the batch"):
        train(small_sae(), Plain(poisoned().all), SHORT)


def test_bad_targets_are_found_too() -> None:
    targets = noise()[:, :4].clone()
    targets[77] = float("nan")

    class Pairs(MemoryStore):
        def sample(self, n: int, *, seed: int = 0) -> Batch:
            return noise(), noise()[:, :4]

    sae = SAE(SAEConfig.of(16, 48, k=2, d_out=4))
    with pytest.raises(DataError, match="NaN or infinity in 1 of 32 rows .* first is row 77"):
        train(sae, Pairs(noise(), targets), SHORT)


def test_a_loss_that_runs_away_is_told_from_bad_data() -> None:
    sae = small_sae()
    with torch.no_grad():
        sae.W_enc.mul_(1e30)
    with pytest.raises(DataError, match="the loss is (inf|nan) at step 0; try a lower lr"):
        train(sae, MemoryStore(noise()), SHORT)


def test_nan_in_the_sample_is_named() -> None:
    x = noise()
    x[3, 2] = float("inf")
    with pytest.raises(DataError, match="NaN or infinity in 1 of 200 rows of a sample"):
        train(small_sae(), MemoryStore(x), SHORT)


@pytest.mark.parametrize(
    ("sae", "source", "message"),
    [
        (small_sae(), (8, None), "the SAE reads width 16, the activations have width 8"),
        (small_sae(), (16, 4), "the SAE writes width None, the source's targets have width 4"),
        (
            SAE(SAEConfig.of(16, 48, k=2, d_out=4)),
            (16, None),
            "the SAE writes width 4, the source's targets have width None",
        ),
    ],
)
def test_other_widths_are_refused(sae: SAE, source: tuple[int, int | None], message: str) -> None:
    d, out = source
    store = MemoryStore(torch.randn(10, d), None if out is None else torch.randn(10, out))
    with pytest.raises(DataError, match=message):
        train(sae, store, SHORT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "layer_norm"}, "inputs='whiten' goes with rows='none' and without d_out"),
        ({"family": "mp"}, "inputs='whiten' does not go with matching pursuit"),
    ],
)
def test_whitening_is_refused_where_it_cannot_be_folded(
    options: dict[str, Any], message: str
) -> None:
    sae = SAE(SAEConfig.of(16, 48, **options))
    with pytest.raises(ConfigError, match=message):
        Trainer(sae, MemoryStore(noise()), short(inputs="whiten"))


def test_more_pieces_than_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="a batch of 10 rows cannot be dealt .* in 11 pieces"):
        Trainer(small_sae(), MemoryStore(noise(10)), short(pieces=11))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps: .*greater than or equal to 1; got 0"),
        ({"lr": -1.0}, r"lr: .*greater than 0; got -1\.0"),
        ({"dead": "magic"}, r"dead: .*'magic' .*'none', 'auxk', 'ghost', 'preact', 'resample'"),
        ({"inputs": "pca"}, r"inputs: Input should be 'scale', 'whiten' or 'none'; got 'pca'"),
        ({"stepz": 3}, r"stepz: Extra inputs are not permitted; got 3"),
    ],
)
def test_a_bad_setting_says_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.of(**options)


def test_settings_go_through_json() -> None:
    config = TrainConfig.of(dead={"kind": "auxk", "k": 3}, betas=(0.5, 0.9), series=2)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    save_state(Trainer(small_sae(), MemoryStore(noise()), SHORT), tmp_path)
    with pytest.raises(CheckpointError, match=r"unfinished training with other settings \(train\)"):
        train(small_sae(), MemoryStore(noise()), short(lr=1.0), folder=tmp_path)


def test_a_broken_state_is_named(tmp_path: Path) -> None:
    save_state(Trainer(small_sae(), MemoryStore(noise()), SHORT), tmp_path)
    (tmp_path / "training.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(CheckpointError, match="training.safetensors: .*; pass --overwrite"):
        train(small_sae(), MemoryStore(noise()), SHORT, folder=tmp_path)


def test_nothing_of_a_finished_run_stays(tmp_path: Path) -> None:
    train(small_sae(), MemoryStore(noise()), SHORT, folder=tmp_path, checkpoint_seconds=-1)
    assert not list(tmp_path.iterdir())
