"""The image gate's detectors: data that can be told apart is, and where the threshold lies."""

import pytest
import torch
from torch import Tensor

from vision_sae.recipes.unlearn import detect
from vision_sae.recipes.unlearn.detect import Detector, balanced_accuracy

T, M = 3, 5


def data(n: int = 60, apart: float = 4.0, own: float = 0.3) -> tuple[Tensor, Tensor]:
    """Codes [n T m]; at each timestep another latent tells the concept."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(n, T, M, generator=generator).abs()
    truth = torch.arange(n) < own * n
    for t in range(T):
        codes[truth, t, t] += apart
    return codes, truth


def test_separable_data_is_separated_at_every_timestep() -> None:
    codes, truth = data(apart=8.0)
    found = detect.fit(codes, truth)
    assert torch.equal(balanced_accuracy(found, codes, truth), torch.ones(T))
    assert found.weight.abs().argmax(1).tolist() == [0, 1, 2]


def test_it_holds_on_data_that_it_has_not_seen() -> None:
    codes, truth = data(200, apart=6.0)
    found = detect.fit(codes[::2], truth[::2])
    assert balanced_accuracy(found, codes[1::2], truth[1::2]).min() > 0.95


@pytest.mark.parametrize("own", [0.05, 0.95])
def test_a_rare_class_weighs_as_much_as_the_other(own: float) -> None:
    codes, truth = data(200, apart=8.0, own=own)
    assert balanced_accuracy(detect.fit(codes, truth), codes, truth).min() > 0.95


def test_the_threshold_is_half_way_between_percentiles() -> None:
    codes, truth = data(apart=1.0)
    found = detect.fit(codes, truth)
    scores = found.scores(codes) - found.bias
    low = scores[truth].quantile(0.02, 0)
    high = scores[~truth].quantile(0.98, 0)
    torch.testing.assert_close(-found.bias, (low + high) / 2, atol=1e-4, rtol=1e-4)


def test_the_weights_are_those_of_weighted_ridge_regression() -> None:
    """The slow way: rows repeated until both classes are of one size, one timestep at a time."""
    codes, truth = data(40, apart=2.0, own=0.25)
    found = detect.fit(codes, truth, ridge=0.3)
    for t in range(T):
        x = codes[:, t].double()
        z = (x - x.mean(0)) / (x.std(0) + 1e-6)
        rows = torch.cat([z[truth].repeat(3, 1), z[~truth]])
        y = torch.cat([torch.ones(30), -torch.ones(30)]).double()
        rows = rows - rows.mean(0)
        gram = rows.T @ rows / 60 + 0.3 * torch.eye(M).double()
        weight = torch.linalg.solve(gram, rows.T @ y / 60) / (x.std(0) + 1e-6)
        torch.testing.assert_close(found.weight[t], weight.float(), atol=1e-4, rtol=1e-3)


def test_latents_that_never_fire_do_no_harm() -> None:
    codes, truth = data(apart=8.0)
    codes = torch.cat([codes, torch.zeros(len(codes), T, 2)], 2)
    found = detect.fit(codes, truth)
    assert torch.equal(found.weight[:, M:], torch.zeros(T, 2))
    assert torch.equal(balanced_accuracy(found, codes, truth), torch.ones(T))


def test_one_prompt_of_each_is_enough() -> None:
    codes = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])
    truth = torch.tensor([True, False])
    found = detect.fit(codes, truth)
    assert (found.scores(codes)[:, 0] > 0).tolist() == [True, False]


def test_balanced_accuracy_by_hand() -> None:
    """3 of 4 of the concept found, 1 of 2 others left."""
    found = Detector(torch.ones(1, 1), torch.tensor([-1.0]))
    codes = torch.tensor([2.0, 2.0, 2.0, 0.0, 2.0, 0.0]).view(6, 1, 1)
    truth = torch.tensor([True] * 4 + [False] * 2)
    assert balanced_accuracy(found, codes, truth).tolist() == [(3 / 4 + 1 / 2) / 2]
