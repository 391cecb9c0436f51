"""The training loop: it learns planted features, resumes exactly, and stops on bad data."""

from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import CheckpointError, DataError
from vision_sae.metrics import evaluate
from vision_sae.resume import load_state, save_state
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, Trainer, train

FAMILIES = ["topk", "batchtopk"]
SHORT = TrainConfig(steps=12, batch_size=32, lr=1e-3, dead_after=64)


def planted(n: int = 4000, d: int = 16, features: int = 24) -> tuple[Tensor, Tensor]:
    """Sparse sums of known directions, off centre and in odd units."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(features, d, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    on = torch.rand(n, features, generator=generator) < 0.06
    strength = 0.5 + torch.rand(n, features, generator=generator)
    return 7.0 * ((on * strength) @ directions) + 3.0, directions


def small_sae(family: str = "topk", seed: int = 0) -> SAE:
    return SAE(SAEConfig.of(16, 48, family, 2), seed=seed)


def noise() -> Float[Tensor, "n d"]:
    return torch.randn(200, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_training_finds_the_planted_directions(family: str) -> None:
    x, directions = planted()
    sae = train(small_sae(family), MemoryStore(x), TrainConfig(steps=800, batch_size=256, lr=5e-3))
    found = (sae.W_dec.detach() @ directions.T).max(0).values
    assert (found > 0.9).float().mean() > 0.8
    assert evaluate(sae, x.split(512)).fvu < 0.25


@pytest.mark.parametrize("family", FAMILIES)
def test_training_keeps_unit_atoms_and_returns_the_datas_units(family: str) -> None:
    sae = train(small_sae(family), MemoryStore(noise() * 50 + 9), SHORT)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(48), atol=1e-5)
    assert float((sae.b_dec.detach() - 9).norm()) < 0.5 * 50
    assert not sae.training
    assert evaluate(sae, [noise() * 50 + 9]).fvu < 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_run_is_the_same_bit_for_bit(family: str, stop: int, tmp_path: Path) -> None:
    """Weights, moments, counters, threshold, data order: stop after any step, go on, compare."""
    whole = train(small_sae(family), MemoryStore(noise()), SHORT)

    class Killed(Exception):
        pass

    def kill(step: int, numbers: dict[str, float]) -> None:
        if step == stop:
            raise Killed

    sae = small_sae(family)
    with pytest.raises(Killed):
        train(
            sae,
            MemoryStore(noise()),
            SHORT,
            folder=tmp_path,
            on_log=kill,
            log_every=1,
            checkpoint_seconds=-1,
        )
    again = train(small_sae(family, seed=9), MemoryStore(noise()), SHORT, folder=tmp_path)
    for (name, a), (_, b) in zip(
        whole.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b) or bool((a.isnan() & b.isnan()).all()), name
    assert not list(tmp_path.iterdir())  # nothing of the run's own stays behind


def test_equal_seeds_give_equal_runs() -> None:
    one, two = (train(small_sae(), MemoryStore(noise()), SHORT) for _ in range(2))
    assert torch.equal(one.W_enc, two.W_enc)


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    save_state(Trainer(small_sae(), MemoryStore(noise()), SHORT), tmp_path)
    other = SHORT.model_copy(update={"lr": 1.0})
    with pytest.raises(CheckpointError, match=r"unfinished training with other settings \(train\)"):
        train(small_sae(), MemoryStore(noise()), other, folder=tmp_path)


def test_nan_in_the_data_stops_with_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Poisoned(MemoryStore):
        def batches(self, size: int, *, seed: int = 0, start: int = 0):  # type: ignore[no-untyped-def]
            for i, rows in enumerate(super().batches(size, seed=seed, start=start)):
                yield rows * float("nan") if i == 4 else rows

        def sample(self, n: int, *, seed: int = 0) -> Tensor:
            return self.all[:n]

    with pytest.raises(DataError, match=r"NaN or infinity in 32 of 32 rows of .* step 4"):
        train(small_sae(), Poisoned(noise()), SHORT, folder=tmp_path, checkpoint_seconds=-1)
    resumed = Trainer(small_sae(), MemoryStore(noise()), SHORT)
    load_state(resumed, tmp_path)
    assert resumed.step == 4
    assert bool(resumed.sae.W_enc.isfinite().all())


def test_nan_in_the_sample_is_named() -> None:
    x = noise()
    x[3, 2] = float("inf")
    with pytest.raises(DataError, match="NaN or infinity in 1 of 200 rows of a sample"):
        train(small_sae(), MemoryStore(x), SHORT)


def test_another_width_is_refused() -> None:
    with pytest.raises(DataError, match="reads width 16, the activations have width 8"):
        train(small_sae(), MemoryStore(torch.randn(10, 8)), SHORT)


def test_the_learning_rate_warms_up_and_decays() -> None:
    config = TrainConfig(steps=100, warmup=0.1, decay=0.2)
    factors = [config.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == factors[80] == 1.0
    assert factors[-1] == pytest.approx(1 / 20)
    assert all(a >= b for a, b in zip(factors[80:], factors[81:], strict=False))


def test_dead_latents_are_counted_in_rows_and_woken_by_auxk() -> None:
    sae = small_sae()
    with torch.no_grad():
        sae.b_enc[:40] = -100.0  # can never be among the two largest
    trainer = Trainer(sae, MemoryStore(noise()), SHORT)
    trainer.start()
    numbers: dict[str, float] = {}
    for rows in list(x for x, _ in zip(trainer.source.batches(32), range(3), strict=False)):
        numbers = trainer.train_step(rows, log=True)
        trainer.step += 1
    assert int((trainer.since_fired >= 64).sum()) >= 40
    assert numbers["dead"] >= 39.9 / 48
    with torch.no_grad():
        sae.b_enc[:40] = 0.0  # alive in value, dead by count: AuxK now has something to train
    before = sae.W_enc.detach().clone()
    trainer.since_fired[:40] = 10_000
    numbers = trainer.train_step(noise()[:32], log=True)
    assert numbers["auxk"] > 0
    assert not torch.equal(before[:40], sae.W_enc[:40])
