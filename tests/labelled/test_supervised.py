"""Supervised dictionaries and edits, where x is made of the factors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.measures.labelled.control import control, pairs_of
from vision_sae.measures.labelled.readout import approximation, readout
from vision_sae.measures.labelled.rows import ImageRows
from vision_sae.measures.labelled.supervised import supervised
from vision_sae.measures.labelled.task import Task
from vision_sae.sparse.codes import Codes

About = list[dict[str, Any]]


def made(known: Task, one_hot: Tensor, d: int = 24, noise: float = 0.05) -> ImageRows:
    """x = a direction per value, and an SAE that found them all."""
    g = torch.Generator().manual_seed(5)
    atoms = torch.nn.functional.normalize(torch.randn(one_hot.shape[1], d, generator=g), dim=1)
    x_hat = one_hot @ atoms
    codes = Codes.of_dense(one_hot)
    x = x_hat + noise * torch.randn(x_hat.shape, generator=g)
    return ImageRows(x, x_hat, codes, codes, atoms)


def useless(rows: ImageRows) -> ImageRows:
    """The same images with random atoms and codes."""
    g = torch.Generator().manual_seed(6)
    hot = (torch.rand(rows.codes.to_dense().shape, generator=g) < 0.3).float()
    atoms = torch.randn(rows.W_dec.shape, generator=g)
    codes = Codes.of_dense(hot)
    return ImageRows(rows.x, rows.x.mean(0) + 0 * rows.x, codes, codes, atoms)


def test_a_supervised_dictionary_finds_the_atoms(known: Task, one_hot: Tensor) -> None:
    rows = made(known, one_hot)
    found = supervised(rows, known)
    fvu = (rows.x - found.x_hat).square().sum() / (rows.x - rows.x.mean(0)).square().sum()
    assert float(fvu) < 0.1
    by_means = supervised(rows, known, fit="means")
    kind = known.columns("kind")
    difference = by_means.W_dec[kind[0]] - by_means.W_dec[kind[1]]
    want = rows.W_dec[kind[0]] - rows.W_dec[kind[1]]
    assert float(torch.cosine_similarity(difference, want, dim=0)) > 0.9


def test_a_good_reconstruction_is_sufficient_and_necessary(known: Task, one_hot: Tensor) -> None:
    rows = made(known, one_hot)
    reader = readout(rows.x, known)
    good = approximation(rows.x, rows.x_hat, reader)
    assert good.sufficiency > 0.97 and good.necessity > 0.7
    bad = approximation(rows.x, useless(rows).x_hat, reader)
    assert bad.sufficiency < 0.05 and bad.necessity < 0.05


def test_a_score_without_a_scale_is_nan_with_a_reason(known: Task) -> None:
    flat = torch.zeros(len(known.members), 4)
    found = approximation(flat, flat, readout(flat, known))
    assert math.isnan(found.sufficiency)
    assert found.reason == "probes on x are no better than the mean"


def test_pairs_differ_in_the_factor_alone(known: Task, about: About) -> None:
    pairs = pairs_of(about, known, "style")
    assert len(pairs) > 20
    for i, j in pairs.tolist():
        assert known.test[i] and known.test[j]
        assert about[i]["style"] != about[j]["style"]
        assert {**about[i], "style": ""} == {**about[j], "style": ""}


@pytest.mark.parametrize("edit", ["aware", "agnostic"])
def test_one_latent_out_and_one_in_turns_an_image_into_another(
    known: Task, one_hot: Tensor, about: About, edit: str
) -> None:
    rows = made(known, one_hot)
    reader = readout(rows.x, known)
    n = 1 if edit == "aware" else 2
    found = control(rows, reader, about, "style", n)
    assert getattr(found, edit) > 0.95 and found.ceiling > 0.95
    assert found.before < 0.05 and found.random < 0.5
    assert n > 1 or found.kept > 0.95


def test_a_useless_dictionary_controls_nothing(known: Task, one_hot: Tensor, about: About) -> None:
    rows = made(known, one_hot)
    found = control(useless(rows), readout(rows.x, known), about, "style", 1)
    assert found.aware < 0.5
    assert found.agnostic < 0.5


def test_without_pairs_it_is_nan_with_a_reason(known: Task, one_hot: Tensor, about: About) -> None:
    rows = made(known, one_hot)
    alone = [{**row, "own": i} for i, row in enumerate(about)]
    found = control(rows, readout(rows.x, known), alone, "style", 1)
    assert math.isnan(found.aware)
    assert found.reason == "0 pairs of test images differ in style alone; 10 are needed"
