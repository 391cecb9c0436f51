"""Baselines on planted data, where the answers are known."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.errors import ConfigError, DataError, MismatchError
from vision_sae.recipes.bottleneck.baselines import Splice, WordConcepts, fit_probe, zero_shot
from vision_sae.recipes.bottleneck.baselines.splice import decompose


def unit(n: int, e: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, e, generator=torch.Generator().manual_seed(seed)), dim=1)


def blobs(n: int, seed: int, spread: float = 0.3) -> tuple[Any, list[str]]:
    """Three classes around three corners, in dimensions of very different size."""
    chance = np.random.default_rng(seed)
    y = chance.integers(0, 3, n)
    x = np.eye(3)[y] + spread * chance.standard_normal((n, 3))
    return x * [1.0, 1e3, 1e-3] + [0, 5e4, 0], [f"class {i}" for i in y]


def test_the_probe_tells_separable_classes_apart_whatever_their_scale() -> None:
    x, y = blobs(300, 0)
    probe = fit_probe(x, y, blobs(100, 1))
    test, truth = blobs(200, 2)
    assert np.mean([a == b for a, b in zip(probe.predict(test), truth, strict=True)]) > 0.95
    assert probe.classes == ["class 0", "class 1", "class 2"]
    assert np.allclose(probe.probabilities(test).sum(1), 1)


def test_the_probe_takes_the_smallest_c_of_the_best_and_its_weights() -> None:
    x, y = blobs(300, 0)
    held_out = blobs(100, 1)
    probe = fit_probe(x, y, held_out)
    best = max(probe.validation.values())
    assert min(c for c, score in probe.validation.items() if score == best) == probe.C
    reached = np.mean(
        [a == b for a, b in zip(probe.predict(held_out[0]), held_out[1], strict=True)]
    )
    assert reached == best
    alone = fit_probe(x, y, held_out, cs=[probe.C])
    assert np.allclose(alone.probabilities(x), probe.probabilities(x), atol=0.02)


def test_a_probe_on_a_constant_dimension_is_finite() -> None:
    x, y = blobs(60, 0)
    x[:, 0] = 7.0
    assert np.isfinite(fit_probe(x, y, (x, y)).probabilities(x)).all()


def test_a_probe_needs_a_label_for_each_row() -> None:
    x, y = blobs(10, 0)
    with pytest.raises(DataError, match="9 labels for 10 rows"):
        fit_probe(x, y[:9], (x, y))


def test_zero_shot_is_the_nearest_text_whatever_the_lengths() -> None:
    texts = unit(4, 16)
    truth = torch.arange(40) % 4
    images = 5 * texts[truth] + 0.1 * unit(40, 16, seed=1)
    assert zero_shot(images, 3 * texts, list("abcd")) == ["abcd"[i] for i in truth]
    with pytest.raises(MismatchError, match="4 texts of width 16 for 3 classes"):
        zero_shot(images, texts, list("abc"))


def sums(directions: Tensor, n: int, count: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Unit sums of `count` directions each, and which ones they are [n v]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(len(directions), generator=generator)[:count]
                          for _ in range(n)])  # fmt: skip
    truth = torch.zeros(n, len(directions)).scatter(1, chosen, 1.0)
    return F.normalize(truth @ directions, dim=1), truth


def test_the_decomposition_finds_planted_words() -> None:
    directions = unit(80, 64)
    z, truth = sums(directions, 50, 3)
    w = decompose(z, directions, l1=0.1)
    assert (w >= 0).all()
    top = w.topk(3, dim=1).indices
    assert truth.gather(1, top).mean() > 0.98


@pytest.mark.parametrize("l1", [0.05, 0.3])
def test_the_decomposition_is_scikit_learn_s_optimum(l1: float) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    directions, z = unit(60, 24), unit(12, 24, seed=1)
    slow = linear.Lasso(
        alpha=l1 / (2 * 24), positive=True, fit_intercept=False, tol=1e-9, max_iter=10_000
    ).fit(directions.double().numpy().T, z.double().numpy().T)
    fast = decompose(z.double(), directions.double(), l1, tolerance=1e-8)
    assert np.allclose(fast.numpy(), slow.coef_, atol=1e-5)


def test_a_larger_l1_takes_fewer_words_and_one_above_every_cosine_none() -> None:
    directions, z = unit(60, 24), unit(12, 24, seed=1)
    counts = [int((decompose(z, directions, l1) > 0).sum()) for l1 in (0.05, 0.3, 0.8, 2.1)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


def test_splice_takes_off_means_of_both_sides_and_recomposes_the_image() -> None:
    base, offset = unit(40, 32), unit(2, 32, seed=5)
    texts = base + 2 * offset[0]  # what every text shares
    z, _ = sums(F.normalize(base - base.mean(0), dim=1), 300, 2)
    images = z + 3 * offset[1]  # what every image shares
    words = [f"word {i}" for i in range(40)]
    found = Splice.of(images, words, texts, l1=0.1)
    codes = found.codes(images, batch=64)
    assert codes.shape == (300, 40)
    assert 1 < codes.nnz / 300 < 12
    assert found.cosine(images).mean() > 0.98
    assert found.names[3] == "word 3"


def test_splice_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="l1 must be above 0; got 0"):
        Splice.of(unit(3, 8), ["a"], unit(1, 8), l1=0)
    with pytest.raises(MismatchError, match="2 words and 1 embeddings"):
        Splice.of(unit(3, 8), ["a", "b"], unit(1, 8))


def test_words_that_are_classes_twins_or_absent_are_left_out_and_named() -> None:
    directions = torch.eye(6)
    images = F.normalize(torch.eye(6)[torch.arange(60) % 4] + 0.1 * unit(60, 6), dim=1)
    words = ["wing", "wings", "bird", "wheel", "cloud"]
    texts = directions[[0, 0, 1, 2, 5]]
    found = WordConcepts.of(images, words, texts, classes=directions[[1]])
    assert found.words == ["wing", "wheel"]
    assert found.left_out == {
        "wings": "nearly 'wing'", "bird": "nearly a class name", "cloud": "on no image",
    }  # fmt: skip
    scores = found.scores(images).toarray()
    assert np.allclose(scores.mean(0), 0, atol=1e-5)
    assert (scores[::4, 0] > 1).all()
    assert (scores[2::4, 1] > 1).all()


def test_no_word_left_is_an_error() -> None:
    with pytest.raises(DataError, match="none of 1 concept words is left"):
        WordConcepts.of(unit(10, 4), ["x"], torch.ones(1, 4), classes=torch.ones(1, 4))
