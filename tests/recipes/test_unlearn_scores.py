"""The scores, with their formulas worked out by hand."""

import torch
from torch import Tensor

from vision_sae.recipes.unlearn.scores import SCORES
from vision_sae.recipes.unlearn.statistics import Contrast


def contrast(**tables: list[list[float]]) -> Contrast:
    given = {name: [[0.0, 0.0], [0.0, 0.0]] for name in Contrast._fields} | tables
    return Contrast(**{name: torch.tensor(rows) for name, rows in given.items()})


ONE = contrast(
    mean=[[3.0, 1.0], [0.0, 2.0]],
    other=[[1.0, 1.0], [4.0, 0.0]],
    variance=[[1.0, 4.0], [0.0, 0.5]],
    other_variance=[[1.0, 0.0], [0.0, 1.5]],
    active=[[0.9, 0.5], [0.0, 0.4]],
    other_active=[[0.1, 0.5], [1.0, 0.0]],
)


def close(found: Tensor, wanted: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def test_saeuron_is_the_difference_of_shares_of_the_mean_code() -> None:
    close(SCORES["saeuron"](ONE), [[3 / 4 - 1 / 2, 1 / 4 - 1 / 2], [0 - 1, 1 - 0]])


def test_saeuron_of_silent_latents_is_0() -> None:
    silent = contrast()
    assert torch.equal(SCORES["saeuron"](silent), torch.zeros(2, 2))


def test_difference_is_in_standard_deviations_within_both_groups() -> None:
    first, second = 1.0, 2**0.5  # root of the mean variance, at the first timestep
    floor = 0.05 * (first + second) / 2
    below = 0.05 * (0 + 1) / 2  # of the second timestep
    wanted = [[2 / (first + floor), 0.0], [-4 / (0 + below), 2 / (1 + below)]]
    close(SCORES["difference"](ONE), wanted)


def test_difference_is_finite_where_nothing_varies() -> None:
    assert SCORES["difference"](contrast(mean=[[1.0, 0.0], [0.0, 0.0]])).isfinite().all()


def test_shift_is_the_size_of_the_difference() -> None:
    close(SCORES["shift"](ONE), [[2.0, 0.0], [4.0, 2.0]])


def test_selective_counts_more_for_the_concept_alone_and_never_less() -> None:
    close(SCORES["selective"](ONE), [[2 * 0.9, 0.0], [0.0, 2 * 1.0]])


def test_every_score_keeps_the_tables_shape() -> None:
    for score in SCORES.values():
        assert score(ONE).shape == (2, 2)
