"""Probes against scikit-learn and on planted codes."""

import math

import numpy as np
import pytest
import torch
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vision_sae.measures.labelled import logistic, ranking
from vision_sae.measures.labelled.probing import probe, sparse_probe
from vision_sae.measures.labelled.scoring import best_thresholds, f1
from vision_sae.measures.labelled.task import Task
from vision_sae.sparse.codes import Codes


def features(known: Task, d: int = 6) -> Tensor:
    g = torch.Generator().manual_seed(2)
    mix = torch.randn(known.members.shape[1], d, generator=g)
    return known.members.float() @ mix + torch.randn(len(known.members), d, generator=g)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("form", ["dense", "codes"])
def test_all_values_at_once_are_scikit_learns_one_by_one(
    known: Task, balanced: bool, form: str
) -> None:
    x = features(known).relu() if form == "codes" else features(known)
    given = Codes.of_dense(x) if form == "codes" else x
    found = logistic.fit(given, known.members, known.train, C=0.5, balanced=balanced, steps=300)(
        given
    )
    spread = x[known.train].std(0, correction=0)
    for v in range(len(known.names)):
        slow = LogisticRegression(C=0.5, class_weight="balanced" if balanced else None, tol=1e-8)
        slow.fit((x[known.train] / spread).double().numpy(), known.members[known.train, v].numpy())
        want = torch.from_numpy(slow.decision_function((x / spread).double().numpy()))
        assert torch.allclose(found[:, v], want.float(), rtol=5e-3, atol=5e-3), known.names[v]


def test_few_features_are_scikit_learns_with_rows_of_zeros_as_one(known: Task) -> None:
    x = (features(known, 3) - 1).relu()
    assert bool((x == 0).all(1).any())
    spread = x[known.train].std(0, correction=0)
    for truth in known.members.T:
        found = logistic.fit_few(x, truth, known.train, C=2.0)(x)[:, 0]
        slow = LogisticRegression(C=2.0, class_weight="balanced", tol=1e-8)
        slow.fit((x[known.train] / spread).double().numpy(), truth[known.train].numpy())
        want = torch.from_numpy(slow.decision_function((x / spread).double().numpy()))
        assert torch.allclose(found, want.float(), rtol=2e-3, atol=1e-3)


def test_a_constant_feature_is_harmless(known: Task) -> None:
    x = torch.cat([features(known), torch.ones(len(known.members), 1)], 1)
    assert bool(logistic.fit(x, known.members, known.train)(x).isfinite().all())


def test_one_latent_per_value_is_all_that_a_sparse_probe_needs(
    known: Task, one_hot: Tensor
) -> None:
    found = sparse_probe(Codes.of_dense(2 * one_hot), known, 1)
    assert found.latents[:, 0].tolist() == list(range(len(known.names)))
    means = found.means()
    assert (means["f1"], means["balanced"], means["auroc"]) == (1.0, 1.0, 1.0)
    assert means["random f1"] < 0.8


def test_a_value_spread_over_two_latents_needs_two(known: Task, one_hot: Tensor) -> None:
    """x fires if one of two latents does, of which each fires on half of its images."""
    half = torch.arange(len(one_hot)) % 2 == 0
    codes = Codes.of_dense(torch.cat([one_hot * half[:, None], one_hot * ~half[:, None]], 1))
    one, two = (sparse_probe(codes, known, k).means()["balanced"] for k in (1, 2))
    assert two == 1.0 and one < 0.9


def test_latents_are_chosen_on_train(known: Task, one_hot: Tensor) -> None:
    spoilt = one_hot.clone()
    spoilt[known.test] = 1 - spoilt[known.test]
    found = sparse_probe(Codes.of_dense(spoilt), known, 1).means()
    assert found["balanced"] == 0.0


def test_codes_that_know_nothing_are_at_chance(known: Task, noise: Tensor) -> None:
    found = sparse_probe(Codes.of_dense(noise), known, 5).means()
    assert abs(found["auroc"] - 0.5) < 0.12
    assert abs(probe(noise, known).means()["auroc"] - 0.5) < 0.12


def test_no_live_latent_is_nan_with_a_reason(known: Task) -> None:
    found = sparse_probe(Codes.of_dense(torch.zeros(len(known.members), 3)), known, 2)
    assert found.reason == "no latent fires"
    assert all(math.isnan(number) for number in found.means().values())


def test_a_probe_on_all_that_is_there_reads_the_board(known: Task, one_hot: Tensor) -> None:
    found = probe(one_hot, known).means()
    assert (found["board"], found["f1"]) == (1.0, 1.0)


def test_the_f_statistic_is_scikit_learns(known: Task) -> None:
    x = features(known).relu()
    m = ranking.moments(Codes.of_dense(x), known.members, known.train)
    found = ranking.f_statistic(m)
    rows = x[known.train].double().numpy()
    for v in range(len(known.names)):
        want, _ = f_classif(rows, known.members[known.train, v].numpy())
        assert np.allclose(found[:, v].numpy(), want, rtol=1e-6)
    kinds = known.only(known.columns("kind"))
    m = ranking.moments(Codes.of_dense(x), kinds.members, kinds.train)
    want, _ = f_classif(rows, kinds.classes("kind")[kinds.train].numpy())
    assert np.allclose(ranking.f_of_classes(m).numpy(), want, rtol=1e-6)


def test_a_constant_latent_ranks_last_and_a_perfect_one_first(known: Task, one_hot: Tensor) -> None:
    x = torch.cat([torch.ones(len(one_hot), 1), one_hot, torch.zeros(len(one_hot), 1)], 1)
    f = ranking.f_statistic(ranking.moments(Codes.of_dense(x), known.members, known.train))
    assert f.argmax(0).tolist() == list(range(1, 1 + len(known.names)))
    assert bool((f[0] == -torch.inf).all()) and bool((f[-1] == -torch.inf).all())


def test_the_best_threshold_is_the_best_of_all() -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40, 3), generator=g).float()
    truth = torch.rand(40, 3, generator=g) < 0.3
    found = best_thresholds(scores, truth)
    got = f1(scores >= found, truth)
    want = torch.stack([f1(scores >= t, truth) for t in range(6)]).amax(0)
    assert torch.allclose(got, want)
