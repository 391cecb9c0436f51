"""InfoMEC on codes whose answer is known."""

import math

import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor

from vision_sae.measures.labelled import infomec as module
from vision_sae.measures.labelled.infomec import infomec, mutual_information
from vision_sae.measures.labelled.task import Task, properties, task
from vision_sae.sparse.codes import Codes


def test_a_latent_per_factor_is_modular_compact_and_explicit(known: Task) -> None:
    """One latent whose strength says the value of its factor, for each of three factors."""
    kind, style, rare = (known.classes(f).float() + 2 for f in ("kind", "style", "rare"))
    hot = torch.stack([kind, style, rare], 1)
    found = infomec(Codes.of_dense(hot), known)
    assert found.modularity > 0.93 and found.compactness > 0.93
    assert sorted(found.factors) == ["kind", "rare", "style"]


def test_one_hot_codes_are_modular_and_explicit_but_split(known: Task, one_hot: Tensor) -> None:
    found = infomec(Codes.of_dense(one_hot), known)
    assert found.modularity > 0.9
    assert found.explicitness > 0.85
    assert found.compactness < 0.7  # four latents share what is known of kind


def test_rotated_codes_are_explicit_and_not_modular(known: Task, one_hot: Tensor) -> None:
    g = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    found = infomec(Codes.of_dense(one_hot @ turn), known)
    assert found.explicitness > 0.75
    assert found.modularity < 0.75


def test_codes_that_know_nothing_explain_nothing(known: Task, noise: Tensor) -> None:
    assert infomec(Codes.of_dense(noise), known).explicitness < 0.05


def test_a_factor_that_determines_another_is_left_out() -> None:
    rows = [
        {"fine": str(i % 6), "coarse": str(i % 6 // 2), "other": str(i // 7 % 2)}
        for i in range(420)
    ]
    some = task(properties(rows), torch.arange(420) % 5 == 0)
    found = infomec(Codes.of_dense(some.members.float()), some)
    assert found.left_out == {"fine": "it determines coarse"}
    assert found.factors == ["coarse", "other"]


def test_mutual_information_is_scikit_learns(known: Task, noise: Tensor) -> None:
    codes, source = Codes.of_dense(noise), known.classes("kind")
    bins = module.binned(codes, 4)
    found = mutual_information(codes, bins, source)
    table = torch.zeros(noise.shape, dtype=torch.int64)
    table[codes.rows, codes.indices] = bins
    for i in range(noise.shape[1]):
        assert float(found[i]) == pytest.approx(mutual_info_score(source, table[:, i]), abs=1e-9)
    assert bins.min() == 1 and bins.max() == 3


def test_the_bias_of_few_images_is_taken_off(known: Task, noise: Tensor) -> None:
    codes = Codes.of_dense(noise)
    raw = mutual_information(codes, module.binned(codes), known.classes("kind"))
    assert float(raw.mean()) > 0.02  # noise seems to know something
    assert float(module._nmi(codes, known.classes("kind"), 0).mean()) < 0.3 * float(raw.mean())


def test_nothing_to_say_is_nan_with_a_reason(known: Task, one_hot: Tensor) -> None:
    dead = infomec(Codes.of_dense(torch.zeros(len(one_hot), 2)), known)
    assert math.isnan(dead.modularity) and dead.reason == "no latent fires"
    one = infomec(Codes.of_dense(one_hot), known.only(known.columns("kind")))
    assert math.isnan(one.modularity) and one.reason == "2 factors are needed, there are 1"
