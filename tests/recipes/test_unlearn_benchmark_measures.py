"""One definition each, checked by hand and by slow twins."""

import pytest
import torch
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.recipes.unlearn.benchmark import measures
from vision_sae.recipes.unlearn.benchmark.world import Ask

TARGETS = [Ask("p", 0, "p", "plain"), Ask("p n", 1, "p", "n")]
OTHERS = [Ask("c", 2, "c", "plain"), Ask("c n", 3, "c", "n"), Ask("f n", 4, "f", "n")]


def seen(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"object": o, "style": s} for o, s in pairs]


def test_the_scores_of_an_object_by_hand() -> None:
    at_targets = seen(("c", "plain"), ("p", "plain"))  # one gone; one of two styles right
    at_others = seen(("c", "n"), ("c", "n"), ("p", "n"))
    found = measures.outcome("object:p", TARGETS, at_targets, OTHERS, at_others, (2, 4))
    assert found["ua"] == 0.5
    assert found["ira"] == pytest.approx(2 / 3)
    assert found["cra_targets"] == 0.5 and found["cra_others"] == pytest.approx(2 / 3)
    assert found["cra"] == pytest.approx((2 * 0.5 + 4 * 2 / 3) / 6)
    assert found["ira_styled"] == 0.5
    assert found["cra_saeuron"] == found["cra_unlearncanvas"] == pytest.approx(2 / 3)


def test_the_scores_of_a_style_by_hand() -> None:
    targets = [TARGETS[1], OTHERS[1]]
    others = [TARGETS[0], OTHERS[0]]
    at_targets = seen(("p", "plain"), ("f", "n"))
    at_others = seen(("p", "plain"), ("c", "n"))
    found = measures.outcome("style:n", targets, at_targets, others, at_others, (2, 2))
    assert found["ua"] == 0.5 and found["ira"] == 0.5
    assert found["cra"] == 0.75
    assert found["cra_saeuron"] == 1.0  # style-less pictures
    assert found["cra_unlearncanvas"] == 0.5  # styled ones
    assert "ira_styled" not in found  # there are none


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(DataError, match="2 pictures with it and 0 without; both are needed"):
        measures.outcome("object:p", TARGETS, seen(("p", "n"), ("p", "n")), [], [])


def test_a_picture_on_the_wrong_side_is_named() -> None:
    read = seen(("c", "n"), ("c", "n"), ("c", "n"))
    with pytest.raises(DataError, match="wrong side, such as 'c'"):
        measures.outcome("object:p", OTHERS, read, OTHERS, read)


def test_frechet_of_shifted_features_is_the_shift_squared() -> None:
    torch.manual_seed(0)
    a = torch.randn(50, 6)
    assert measures.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert measures.frechet(a, a + 2) == pytest.approx(4 * 6, rel=1e-6)
    assert measures.frechet(a, 3 * a) == pytest.approx(
        float((2 * a.mean(0)).square().sum() + 4 * a.T.cov().trace()), rel=1e-4
    )


def test_the_kernel_distance_as_written_out() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 3), torch.randn(4, 3)

    def k(x: Tensor, y: Tensor) -> float:
        x, y = x / x.norm(), y / y.norm()
        return float((3 * (x @ y) / 3 + 1) ** 3)

    within = [
        sum(k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j)
        / (len(x) * (len(x) - 1))
        for x in (a, b)
    ]
    between = sum(k(x, y) for x in a for y in b) / 20
    assert measures.kernel_distance(a, b) == pytest.approx(sum(within) - 2 * between, rel=1e-4)


def test_pairs_of_one_seed_are_left_out_between_the_sets() -> None:
    a = torch.randn(6, 3)
    assert measures.kernel_distance(a, a, paired=True) == pytest.approx(0, abs=1e-9)
    assert measures.kernel_distance(a, a) < -0.1  # as if they were independent
    with pytest.raises(DataError, match="as many on each side; got 6 and 5"):
        measures.kernel_distance(a, a[:5], paired=True)


def test_distances_need_two_pictures() -> None:
    with pytest.raises(DataError, match="got 1 and 3"):
        measures.frechet(torch.zeros(1, 2), torch.zeros(3, 2))


def test_layer_distance_is_zero_for_equals_and_four_for_opposites() -> None:
    a = [torch.randn(2, 5, 3), torch.randn(2, 4, 7)]
    assert measures.layer_distance(a, a).tolist() == [0, 0]
    opposite = measures.layer_distance(a, [-x for x in a])
    assert torch.allclose(opposite, torch.full((2,), 4.0))


def test_unchanged_pixels_are_those_of_small_differences() -> None:
    a = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    b = a.clone()
    b[0, 1, 0, 0], b[0, 2, 1, 1] = 108, 91
    assert measures.unchanged(a, b).tolist() == [0.75]


def test_nearest_neighbours_by_blocks() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(11, 4), torch.randn(7, 4)
    assert torch.allclose(measures.nearest(a, b, block=3), torch.cdist(a, b).amin(1))
    apart = torch.cdist(a, a).fill_diagonal_(torch.inf)
    assert torch.allclose(measures.nearest(a, block=3), apart.amin(1), atol=1e-5)


def test_what_is_far_from_all_clean_samples_is_strange() -> None:
    torch.manual_seed(0)
    clean = torch.randn(200, 4)
    features = torch.cat([clean[:5] + 0.01, clean[:2] + 50])
    assert measures.strange(features, clean).tolist() == [False] * 5 + [True] * 2
