"""Coverage and boards on planted codes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.measures.factors import labels_of
from vision_sae.measures.labelled import coverage as module
from vision_sae.measures.labelled.coverage import board, coverage, slow_best_f1
from vision_sae.measures.labelled.task import Task, task
from vision_sae.sparse.codes import Codes


def test_a_latent_for_every_value_is_full_coverage_and_the_whole_board(
    known: Task, one_hot: Tensor
) -> None:
    found = coverage(Codes.of_dense(3 * one_hot), known)
    assert found.coverage == 1.0
    assert found.latent.tolist() == list(range(len(known.names)))
    assert found.control < 0.6
    whole = board(Codes.of_dense(one_hot), known, least=5)
    assert (whole.f1, whole.values, whole.classifiers) == (1.0, 8, 8)


def test_a_threshold_is_found_where_it_is_needed(known: Task, one_hot: Tensor) -> None:
    """Latents fire weakly on all images, strongly on those of their value."""
    found = coverage(Codes.of_dense(0.25 + one_hot), known)
    assert found.coverage == 1.0
    assert bool((found.threshold > 0.2).all())


def test_codes_that_know_nothing_cover_no_more_than_chance(known: Task, noise: Tensor) -> None:
    found = coverage(Codes.of_dense(noise), known)
    rate = known.members[known.test].float().mean(0)
    always = 2 * rate / (1 + rate)  # the F1 of saying yes to all
    assert found.coverage < float(always.mean()) + 0.1
    assert math.isnan(board(Codes.of_dense(noise), known).f1)


def test_thresholds_and_latents_are_chosen_on_train(known: Task, one_hot: Tensor) -> None:
    """Latents that are right on train only are chosen, and fail on test."""
    spoilt = one_hot.clone()
    spoilt[known.test] = 0
    good = one_hot.clone()
    good[known.train] = 0
    found = coverage(Codes.of_dense(torch.cat([spoilt, good], 1)), known)
    assert found.latent.max() < len(known.names)
    assert found.coverage == 0.0


def test_a_dead_sae_has_a_reason_and_not_a_number(known: Task) -> None:
    dead = Codes.of_dense(torch.zeros(len(known.members), 3))
    found, empty = coverage(dead, known), board(dead, known)
    assert math.isnan(found.coverage) and found.reason == "no latent fires"
    assert math.isnan(empty.f1) and "no latent has precision 0.95 on 10 images" in empty.reason


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([40, 2**24]))
def test_counts_equal_trying_every_threshold(seed: int, cells: int) -> None:
    g = torch.Generator().manual_seed(seed)
    dense = (torch.randn(30, 5, generator=g).relu() * 10).round() / 10
    rows = [{"f": str(i % 3)} for i in range(30)]
    some = task(labels_of(rows, least=1), torch.arange(30) % 5 == 0, least=1)
    codes = Codes.of_dense(dense)
    level = module._levels(codes, module._largest(codes, some.train))
    before, module.CELLS = module.CELLS, cells
    try:
        best, _ = module._best_f1(codes, some, level)
    finally:
        module.CELLS = before
    assert torch.allclose(best, slow_best_f1(codes, some), atol=1e-6)


@pytest.mark.parametrize("precision", [0.5, 0.95])
def test_a_board_is_the_union_of_sure_latents(
    known: Task, one_hot: Tensor, precision: float
) -> None:
    """The obvious twin, at threshold 0: a latent of half precision counts only when asked to."""
    kind = known.columns("kind")
    dense = torch.stack([one_hot[:, kind[0]], one_hot[:, kind[1]] + one_hot[:, kind[2]]], 1)
    found = board(Codes.of_dense(dense), known, precision=precision)
    train = dense[known.train] > 0
    truth = known.members[known.train]
    hits = train.float().T @ truth.float()
    table = hits >= precision * train.sum(0)[:, None]
    predicted = (dense[known.test] @ table.float()) > 0
    both = (predicted & known.members[known.test]).sum(1)
    f1 = 2 * both / (predicted.sum(1) + known.members[known.test].sum(1))
    assert found.f1 == pytest.approx(float(f1.mean()))
