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


ATOMS = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])  # of norms 5 and 2


def close(found: Tensor, wanted: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def test_saeuron_is_the_difference_of_shares_of_the_mean_code() -> None:
    close(SCORES["saeuron"](ONE, ATOMS), [[3 / 4 - 1 / 2, 1 / 4 - 1 / 2], [0 - 1, 1 - 0]])


def test_saeuron_of_silent_latents_is_0() -> None:
    silent = contrast()
    assert torch.equal(SCORES["saeuron"](silent, ATOMS), torch.zeros(2, 2))


def test_difference_is_in_standard_deviations_within_both_groups() -> None:
    first, second = 1.0, 2**0.5  # root of the mean variance, at the first timestep
    floor = 0.05 * (first + second) / 2
    below = 0.05 * (0 + 1) / 2  # of the second timestep
    wanted = [[2 / (first + floor), 0.0], [-4 / (0 + below), 2 / (1 + below)]]
    close(SCORES["difference"](ONE, ATOMS), wanted)


def test_difference_is_finite_where_nothing_varies() -> None:
    assert SCORES["difference"](contrast(mean=[[1.0, 0.0], [0.0, 0.0]]), ATOMS).isfinite().all()


def test_shift_is_how_far_the_difference_moves_the_output() -> None:
    close(SCORES["shift"](ONE, ATOMS), [[2.0 * 5, 0.0], [4.0 * 5, 2.0 * 2]])


def test_attribution_is_each_latents_part_of_what_the_probe_reads() -> None:
    length = 416**0.5  # of (-12, -16, 4), the probe at the second timestep
    close(SCORES["attribution"](ONE, ATOMS), [[10.0, 0.0], [400 / length, 16 / length]])


def test_attributions_add_up_to_the_probe_and_are_negative_for_what_works_against_it() -> None:
    chance = torch.Generator().manual_seed(0)
    mean, atoms = torch.rand(3, 8, generator=chance), torch.randn(8, 5, generator=chance)
    zero = torch.zeros_like(mean)
    found = SCORES["attribution"](Contrast(mean, zero, zero, zero, zero, zero), atoms)
    torch.testing.assert_close(found.sum(1), (mean @ atoms).norm(dim=1))
    assert (found < 0).any()


def test_selective_counts_more_for_the_concept_alone_and_never_less() -> None:
    close(SCORES["selective"](ONE, ATOMS), [[2 * 0.9, 0.0], [0.0, 2 * 1.0]])


def test_every_score_keeps_the_tables_shape() -> None:
    for score in SCORES.values():
        assert score(ONE, ATOMS).shape == (2, 2)
