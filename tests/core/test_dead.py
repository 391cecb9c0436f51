"""What is done about dead latents: losses against dense twins, and resampling."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae import losses
from vision_sae.losses import Pass
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, Trainer
from vision_sae.train.dead import AuxK, Ghost, PreAct, Resample, resample

Advance = Callable[[Trainer, int], list[dict[str, float]]]
D, S = 6, 40
DEAD = [1, 4, 5, 9, 17]


def sae_of(family: str = "topk", **options: Any) -> SAE:
    k = 3 if family in ("topk", "batchtopk") else None
    sae = SAE(SAEConfig.of(D, S, family, k, **options), seed=1).double()
    with torch.no_grad():
        for i, p in enumerate(sae.parameters()):
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return sae


def rows(n: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, D, generator=generator, dtype=torch.float64)


def dead_of(ids: list[int]) -> Tensor:
    return torch.zeros(S, dtype=torch.bool).index_fill(0, torch.tensor(ids, dtype=torch.long), True)


def pass_of(sae: SAE, ids: list[int] = DEAD, target: Tensor | None = None) -> Pass:
    return losses.forward(sae, rows(), target, dead_of(ids))


def dead_z(sae: SAE, ids: list[int]) -> Tensor:
    centred = rows() - sae.b_dec if sae.config.centred else rows()
    return centred @ sae.W_enc[ids].T + sae.b_enc[ids]


def residual(sae: SAE) -> Tensor:
    return (rows() - sae(rows()).x_hat).detach()


def slow_auxk(sae: SAE, ids: list[int], k: int, form: str) -> Tensor:
    z, e = dead_z(sae, ids), residual(sae)
    keep = torch.zeros_like(z)
    for row, numbers in zip(keep, z, strict=True):
        row[numbers.argsort(descending=True)[:k]] = 1
    f = (z.relu() if form == "openai" else z) * keep
    error = (e - f @ sae.W_dec[ids]).square()
    if form == "saelens":
        return error.sum(1).mean() * min(len(ids) / k, 1)
    return error.mean() / (e - e.mean(0)).square().mean()


def slow_ghost(sae: SAE, ids: list[int]) -> Tensor:
    e = residual(sae)
    guess = dead_z(sae, ids).exp() @ sae.W_dec[ids]
    scale = (e.norm(dim=1) / (2 * guess.norm(dim=1))).detach()
    error = (guess * scale[:, None] - e).square().sum(1).mean()
    return error * (e.square().sum(1).mean() / error).detach()


def slow_preact(sae: SAE, ids: list[int]) -> Tensor:
    """Thresholds below 0 are held there, as in the forward pass; their gradient is not."""
    theta = sae.thresholds[ids] if hasattr(sae, "thresholds") else torch.zeros(len(ids))
    assert not hasattr(sae, "thresholds") or bool((theta < 0).any())
    theta = theta + (theta.clamp(min=0) - theta).detach()
    return ((theta - dead_z(sae, ids)).relu() * sae.W_dec[ids].norm(dim=1)).sum(1).mean()


EVERY = list(range(S))
TWINS: dict[str, tuple[Callable[[Pass], Tensor], Callable[[SAE], Tensor]]] = {
    "openai": (lambda p: losses.auxk(p, 2), lambda s: slow_auxk(s, DEAD, 2, "openai")),
    "openai-few": (lambda p: losses.auxk(p, 9), lambda s: slow_auxk(s, DEAD, 9, "openai")),
    "saelens": (
        lambda p: losses.auxk(p, 2, form="saelens"), lambda s: slow_auxk(s, DEAD, 2, "saelens")
    ),
    "saelens-few": (
        lambda p: losses.auxk(p, 9, form="saelens"), lambda s: slow_auxk(s, DEAD, 9, "saelens")
    ),
    "ghost": (losses.ghost, lambda s: slow_ghost(s, DEAD)),
    "preact": (losses.pre_activation, lambda s: slow_preact(s, DEAD)),
    "preact-every": (
        lambda p: losses.pre_activation(p, every=True), lambda s: slow_preact(s, EVERY)
    ),
}  # fmt: skip


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("family", ["topk", "jumprelu"])
@pytest.mark.parametrize("name", TWINS)
def test_a_dead_loss_equals_its_dense_twin(
    name: str, family: str, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its value and all its gradients; AuxK also by way of sparse products."""
    monkeypatch.setattr(losses, "DENSE_FROM", 2.0 if sparse else 0.0)
    fast, slow = TWINS[name]
    sae, twin = sae_of(family), sae_of(family)
    loss, want = fast(pass_of(sae)), slow(twin)
    torch.testing.assert_close(loss, want)
    loss.backward()
    want.backward()
    for (parameter, p), q in zip(sae.named_parameters(), twin.parameters(), strict=True):
        zero = torch.zeros_like(p)
        mine, theirs = (zero if t.grad is None else t.grad for t in (p, q))
        torch.testing.assert_close(mine, theirs, msg=parameter)
    assert sae.W_enc.grad is not None
    others = [i for i in range(S) if i not in DEAD]
    assert bool(sae.W_enc.grad[DEAD].any())
    if "every" not in name:
        assert not bool(sae.W_enc.grad[others].any())  # only the dead learn from it


@pytest.mark.parametrize("name", [n for n in TWINS if "every" not in n])
def test_without_dead_latents_there_is_no_loss(name: str) -> None:
    assert float(TWINS[name][0](pass_of(sae_of(), []))) == 0.0


def test_auxk_has_half_the_output_width_of_latents_by_default() -> None:
    """Gao et al. 2024, appendix A.2: k_aux near d / 2; weight 1/32."""
    p = pass_of(sae_of(), EVERY)
    torch.testing.assert_close(AuxK().loss(p), losses.auxk(p, D // 2) / 32)
    torch.testing.assert_close(AuxK(weight=2, k=5).loss(p), 2 * losses.auxk(p, 5))


def test_a_perfect_reconstruction_has_a_finite_dead_loss() -> None:
    """Its residual has no variance to be measured against."""
    sae = sae_of()
    p = pass_of(sae)
    perfect = replace(p, x_hat=p.target.clone())
    for treatment in (Ghost(), PreAct()):
        loss = treatment.loss(perfect)
        assert loss is not None and bool(loss.isfinite())


def test_a_transcoders_dead_latents_predict_what_is_missing_of_its_target() -> None:
    sae = sae_of(d_out=4)
    target = torch.randn(16, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    loss = losses.auxk(pass_of(sae, target=target), 2)
    loss.backward()
    assert sae.W_dec.grad is not None and bool(sae.W_dec.grad[DEAD].any())


# ---- counting


def test_dead_latents_are_counted_in_rows_and_woken_by_auxk(advance: Advance) -> None:
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    sae = SAE(SAEConfig.of(16, 48, k=2))
    with torch.no_grad():
        sae.b_enc[:40] = -100.0  # can never be among the two largest
    config = TrainConfig(steps=12, batch_size=32, lr=1e-3, dead_after=64)
    trainer = Trainer(sae, MemoryStore(x), config)
    trainer.start()
    numbers = advance(trainer, 3)
    assert trainer.since_fired[:40].tolist() == [96] * 40
    assert int(trainer.since_fired.min()) == 0
    assert [n["dead_loss"] > 0 for n in numbers] == [False, False, True]
    assert numbers[-1]["dead"] >= 39.9 / 48
    with torch.no_grad():
        sae.b_enc[:40] = 0.0  # alive in value, dead by count: AuxK now has something to train
    before = sae.W_enc.detach().clone()
    trainer.since_fired[:40] = 10_000
    advance(trainer, 1)
    assert bool((before[:40] != sae.W_enc[:40]).any(1).all())


# ---- resampling


def resampled(
    family: str = "relu", ids: list[int] = DEAD, *, batch: int = 16, **options: Any
) -> tuple[Trainer, SAE, Tensor, Tensor]:
    """A trainer after some steps and a resampling, the SAE before, which changed, the batch."""
    x = rows(64).float() * 3 + 1
    config = TrainConfig(steps=20, batch_size=batch, dead="none", inputs="none", lr=1e-2)
    trainer = Trainer(SAE(SAEConfig.of(D, S, family, **options)), MemoryStore(x), config)
    trainer.start()
    for batch_rows, _ in zip(trainer.source.batches(batch), range(3), strict=False):
        trainer.train_step(batch_rows)
        trainer.step += 1
    before = SAE(trainer.sae.config)
    before.load_state_dict(trainer.sae.state_dict())
    trainer.since_fired[ids] = 1000
    p = losses.forward(trainer.sae, x[:batch], None, dead_of(ids))
    changed = resample(trainer, p, encoder_norm=0.2)
    return trainer, before, changed, x[:batch]


@pytest.mark.parametrize("family", ["relu", "gated", "jumprelu", "topk"])
def test_resampled_latents_start_as_badly_reconstructed_rows(family: str) -> None:
    k = {"k": 3} if family == "topk" else {}
    trainer, before, changed, x = resampled(family, **k)
    sae = trainer.sae
    assert changed.nonzero()[:, 0].tolist() == DEAD
    others = [i for i in range(S) if i not in DEAD]
    for name in ("W_enc", "W_dec", "b_enc"):
        one, other = getattr(sae, name), getattr(before, name)
        assert torch.equal(one[others], other[others]), name
    e = x - before.train()(x).x_hat
    directions = torch.nn.functional.normalize(e, dim=1)
    for i in DEAD:  # the atom is a residual, the encoder reads the row it came from
        row = int((directions @ sae.W_dec[i]).argmax())
        torch.testing.assert_close(sae.W_dec[i], directions[row])
        read = torch.nn.functional.normalize(x[row] - sae.b_dec, dim=0)
        length = 0.2 * before.W_enc[others].norm(dim=1).mean()
        torch.testing.assert_close(sae.W_enc[i], read * length)
    assert sae.b_enc[DEAD].tolist() == [0] * len(DEAD)
    assert trainer.since_fired[DEAD].tolist() == [0] * len(DEAD)
    assert bool((trainer.since_fired[others] < 1000).all())


def test_moments_of_resampled_rows_are_zero_and_others_are_kept() -> None:
    trainer, _, _, _ = resampled()
    others = [i for i in range(S) if i not in DEAD]
    for parameter in (trainer.sae.W_enc, trainer.sae.W_dec, trainer.sae.b_enc):
        state = trainer.optimizer.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):
            assert not bool(state[name][DEAD].any())
            assert bool(state[name][others].any())
        assert float(state["step"]) == 3


def test_more_dead_latents_than_rows_take_the_rows_there_are() -> None:
    trainer, before, changed, _ = resampled(ids=EVERY, batch=8)
    assert int(changed.sum()) == 8
    moved = (trainer.sae.W_dec != before.W_dec).any(1)
    assert torch.equal(moved, changed)
    assert bool(trainer.sae.W_enc.isfinite().all())


def test_no_dead_latent_no_resampling() -> None:
    trainer, before, changed, _ = resampled(ids=[])
    assert not bool(changed.any()) and torch.equal(trainer.sae.W_dec, before.W_dec)


def test_badly_reconstructed_rows_are_drawn_more_often() -> None:
    """With probability proportional to the squared loss: here all but surely one row."""
    trainer, _, _, x = resampled(ids=[])
    p = losses.forward(trainer.sae, x, None, dead_of([3]))
    x_hat = p.x_hat.detach().clone()
    x_hat[11] += 1e4
    resample(trainer, replace(p, x_hat=x_hat), 0.2)
    direction = torch.nn.functional.normalize(x[11] - x_hat[11], dim=0)
    torch.testing.assert_close(trainer.sae.W_dec[3].detach(), direction)


def test_tied_unit_atoms_keep_their_norm() -> None:
    trainer, before, _, _ = resampled(tied=True)
    torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1), torch.ones(S))
    assert not torch.equal(trainer.sae.W_dec[DEAD], before.W_dec[DEAD])


def test_archetypes_are_resampled_at_a_point() -> None:
    """W_dec is computed there: writing to it would change nothing."""
    options = {"dictionary": {"kind": "archetypal", "points": 12}}
    trainer, before, _, x = resampled(**options)
    sae: Any = trainer.sae
    assert bool((sae.W_dec[DEAD] != before.W_dec[DEAD]).any(1).all())
    others = [i for i in range(S) if i not in DEAD]
    torch.testing.assert_close(sae.W_dec[others], before.W_dec[others])
    e = torch.nn.functional.normalize(x - before.train()(x).x_hat, dim=1)
    points = torch.nn.functional.normalize(sae.parametrizations.W_dec[0].C, dim=1)
    best = {int(i) for i in (e @ points.T).argmax(1)}
    assert {int(i) for i in sae.parametrizations.W_dec.original[DEAD].argmax(1)} <= best
    moments = trainer.optimizer.state[sae.parametrizations.W_dec.original]
    assert not bool(moments["exp_avg"][DEAD].any()) and bool(moments["exp_avg"].any())


def test_resampling_happens_at_equally_spaced_points_of_the_first_part() -> None:
    plan = Resample(times=4, until=0.7)
    assert [step + 1 for step in range(100) if plan.due(step, 100)] == [18, 35, 52, 70]


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_training_resamples_at_its_points(pieces: int, advance: Advance) -> None:
    x = rows(64).float()
    sae = SAE(SAEConfig.of(D, S, "relu", coefficient=0.0))
    with torch.no_grad():
        sae.b_enc[DEAD] = -100.0
    config = TrainConfig(
        steps=10, batch_size=16, dead_after=32, dead={"kind": "resample", "times": 2, "until": 0.8},
        pieces=pieces,
    )  # fmt: skip
    trainer = Trainer(sae, MemoryStore(x), config)
    trainer.start()
    advance(trainer, 3)
    assert bool((sae.b_enc[DEAD] < -99).all())
    advance(trainer, 1)
    assert sae.b_enc[DEAD].tolist() == [0] * len(DEAD)
    advance(trainer, 1)
    assert bool((trainer.since_fired[DEAD] < 32).all())
