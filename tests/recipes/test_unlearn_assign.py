"""One latent per concept: on planted features whose rows are labelled."""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vision_sae import losses
from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError, DataError
from vision_sae.model.adapter import fingerprint
from vision_sae.recipes.unlearn import methods
from vision_sae.recipes.unlearn.assign import (
    assign,
    first_score,
    many_hot,
    matched,
    supervised,
)
from vision_sae.recipes.unlearn.prompts import Labelled
from vision_sae.sae import SAE, SAEConfig
from vision_sae.synthetic import Synthetic, SyntheticConfig
from vision_sae.train import TrainConfig, train

CONCEPTS = ("object:pizza", "style:neon", "style:sepia")
PLANTED = [1, 4, 9]  # features that are concepts
WORLD = Synthetic(SyntheticConfig(d=16, features=48, l0=4.0, noise=0.02, seed=3))


def labelled(seed: int = 0, size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
    for x, activations in WORLD.held_out(size, 10**6, seed=seed):
        yield x, (activations[:, PLANTED] > 0).long()


@pytest.fixture(scope="module")
def base() -> SAE:
    config = SAEConfig.of(16, 64, "topk", k=4)
    return train(SAE(config), WORLD, TrainConfig(steps=200, batch_size=512))


def auroc(z: Tensor, y: Tensor) -> float:
    ranks = z.argsort().argsort().double() + 1
    n = y.sum()
    return float((ranks[y > 0].sum() - n * (n + 1) / 2) / (n * (len(y) - n)))


def probe(c: int) -> Tensor:
    """A linear probe by least squares on the labels: about as well as one direction can tell."""
    x, y = next(labelled(seed=8, size=8000))
    found: Tensor = torch.linalg.lstsq(x - x.mean(0), (y[:, c] - y[:, c].float().mean())[:, None])[
        0
    ]
    return found[:, 0]


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_each_concept_gets_a_latent_that_finds_it(base: SAE, loss: str) -> None:
    before = {name: t.clone() for name, t in base.state_dict().items()}
    batches = labelled()
    if loss == "ce":
        batches = ((x, _index(y)) for x, y in batches)
    found = assign(base, batches, CONCEPTS, weight=2.0, steps=120, lr=6e-3, loss=loss)
    assert len(found.latents.unique()) == 3
    assert all(torch.equal(t, before[name]) for name, t in base.state_dict().items())
    x, y = next(labelled(seed=9, size=4000))
    rows = y.sum(1) == 1 if loss == "ce" else torch.ones(len(y), dtype=torch.bool)
    z, was = found.sae.pre_activations(x), base.pre_activations(x)
    scores = [auroc(z[rows, i], y[rows, c]) for c, i in enumerate(found.latents.tolist())]
    former = [auroc(was[rows, i], y[rows, c]) for c, i in enumerate(found.latents.tolist())]
    best = [auroc(x[rows] @ probe(c), y[rows, c]) for c in range(3)]
    assert all(a > b - 0.03 for a, b in zip(scores, best, strict=True)), (scores, best)
    assert sum(scores) > sum(former) + 0.1, (scores, former)
    with torch.no_grad():
        fvu = [float(losses.fvu(x, sae(x).x_hat)) for sae in (base, found.sae)]
    assert fvu[1] < fvu[0] + 0.05


def _index(y: Tensor) -> Tensor:
    return torch.where(y.sum(1) == 1, y.argmax(1), -1)


def test_weight_zero_is_plain_finetuning(base: SAE) -> None:
    found = assign(base, labelled(), CONCEPTS, weight=0.0, steps=3, lr=1e-3)
    rows = torch.cat([x for x, _ in islice(labelled(), 40)])

    class Rows:
        rows, width = 2**62, 16

        def batches(self, size: int, **options: int) -> Iterator[Tensor]:
            return (x for x, _ in labelled())

        def sample(self, n: int, *, seed: int = 0) -> Tensor:
            return rows[: min(n, 2**14)]

    import copy

    config = TrainConfig(steps=3, batch_size=512, lr=1e-3)
    plain = train(copy.deepcopy(base), Rows(), config, finetune=True)  # type: ignore[arg-type]
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(tensor, found.sae.state_dict()[name], atol=1e-6), name


def test_a_threshold_family_is_calibrated_again() -> None:
    sae = SAE(SAEConfig.of(16, 64, "batchtopk", k=4))
    sae = train(sae, WORLD, TrainConfig(steps=50, batch_size=256))
    found = assign(sae, labelled(), CONCEPTS, steps=20)
    x, _ = next(labelled(seed=5))
    assert 2 < float(found.sae.encode(x).l0.float().mean()) < 6


# ---- matching


def test_no_latent_serves_two_concepts() -> None:
    score = torch.tensor([[9.0, 8.0, 0.0], [9.0, 1.0, 0.0]])
    assert matched(score).tolist() == [1, 0]
    with pytest.raises(ConfigError, match="4 concepts need as many latents; this SAE has 3"):
        matched(torch.zeros(4, 3))
    with pytest.raises(DataError, match="NaN or infinity"):
        matched(torch.full((1, 3), torch.nan))


@given(st.integers(1, 4), st.integers(4, 6), st.integers(0, 999))
def test_matching_is_the_best_of_all(c: int, s: int, seed: int) -> None:
    from itertools import permutations

    score = torch.randn(c, s, generator=torch.Generator().manual_seed(seed))
    best = max(float(score[range(c), list(p)].sum()) for p in permutations(range(s), c))
    found = matched(score)
    assert float(score[range(c), found].sum()) == pytest.approx(best, abs=1e-5)


def test_the_first_score_is_a_difference_in_deviations(base: SAE) -> None:
    x, y = next(labelled())
    score = first_score(base, x, y.float())
    z = base.pre_activations(x)[:, 7]
    slow = (z[y[:, 1] == 1].mean() - z[y[:, 1] == 0].mean()) / z.std()
    assert torch.allclose(score[1, 7], slow, atol=1e-5)


# ---- labels and losses


def test_labels_of_both_forms() -> None:
    want = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.0]])
    assert torch.equal(many_hot(torch.tensor([0, -1, 2]), 3), want)
    assert torch.equal(many_hot(want.bool(), 3), want)
    with pytest.raises(DataError, match=r"-1 \(none\) to 2, as there are 3 concepts; got -1 to 3"):
        many_hot(torch.tensor([3, -1]), 3)
    with pytest.raises(DataError, match=r"0 and 1 \[n 3\].*float32 of shape \(2, 2\)"):
        many_hot(torch.zeros(2, 2), 3)


def test_losses_are_those_of_each_row(base: SAE) -> None:
    """Slow twins."""
    x, y = next(labelled(size=40))
    p, latents, labels = losses.forward(base, x), torch.tensor([3, 8, 60]), y.float()
    z = base.pre_activations(x)[:, latents]
    sums = []
    for row, label in zip(z, labels, strict=True):
        for value, there in zip(row, label, strict=True):
            chance = torch.sigmoid(value)
            sums.append(-3 * chance.log() if there else -(1 - chance).log())
    slow = torch.stack(sums).mean()
    assert torch.allclose(supervised(p, latents, labels, "bce", 3.0), slow, atol=1e-5)
    chosen = [
        (row, int(label.argmax())) for row, label in zip(z, labels, strict=True) if label.sum() == 1
    ]
    slow = torch.stack([-row.log_softmax(0)[i] for row, i in chosen]).mean()
    assert torch.allclose(supervised(p, latents, labels, "ce", 1.0), slow, atol=1e-5)
    assert not supervised(p, latents, torch.zeros_like(labels), "ce", 1.0).any()


def test_bad_input_is_refused(base: SAE) -> None:
    with pytest.raises(ConfigError, match="concepts must be named, each once; got none"):
        assign(base, labelled(), [])
    with pytest.raises(ConfigError, match="loss must be bce or ce; got 'l2'"):
        assign(base, labelled(), CONCEPTS, loss="l2")
    with pytest.raises(ConfigError, match="weight must be at least 0; got -1"):
        assign(base, labelled(), CONCEPTS, weight=-1)
    with pytest.raises(
        ConfigError, match=r"3 concepts need as many different latents.*\[1, 1, 2\]"
    ):
        assign(base, labelled(), CONCEPTS, latents=torch.tensor([1, 1, 2]))
    with pytest.raises(DataError, match="no batches to learn from"):
        assign(base, iter(()), CONCEPTS)
    with pytest.raises(DataError, match="the batches ended after 2 of 9 steps"):
        assign(base, islice(labelled(), 2), CONCEPTS, steps=9)
    with pytest.raises(DataError, match=r"rows \[n 16\] and n labels; got \(4, 3\) and \(4,\)"):
        assign(base, iter([(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))]), CONCEPTS)
    coder = SAE(SAEConfig.of(16, 32, "relu", d_out=8))
    with pytest.raises(ConfigError, match="not in transcoders"):
        assign(coder, labelled(), CONCEPTS)


# ---- as a method of the benchmark


@pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
def test_as_a_method_the_assigned_latent_alone_is_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    sys.path.append(str(Path(__file__).parents[1] / "adapters"))
    from diffusers_models import pipeline

    pairs = [(o, s) for o in "abc" for s in "xy"]
    rows = [Labelled(Prompt(o + s, i), {"object": o, "style": s}) for i, (o, s) in enumerate(pairs)]
    monkeypatch.setattr(methods, "asked", lambda per_pair: rows)
    monkeypatch.setattr(methods, "all_concepts", lambda: ["object:a", "object:b", "style:x"])
    site, pipe = "mid_block.attentions.0:update", pipeline("sd")
    sae = SAE(SAEConfig.of(16, 32, "batchtopk", k=4), seed=0).eval()
    first = methods.Observed(pipe, lambda: {site: sae})
    method = methods.AssignedLatents(first, steps=2)
    plan = method._plan("style:x")
    (edit,), mine = plan.edits, int(method.assigned[site].latents[2])
    assert edit.latents[(edit.strengths != 0).any(0)].tolist() == [mine]
    assert edit.sae == fingerprint(method.assigned[site].sae) != fingerprint(sae)
    with method.fit(pipe, ["style:x", "object:b"])(pipe) as draw:
        assert draw is pipe
