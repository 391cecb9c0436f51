"""Scores, cases and the table of measures."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.errors import DataError, UnknownName
from vision_sae.measures import suite
from vision_sae.measures.case import BLOCK, Case, Dictionary, Encoding, Layout, Sample
from vision_sae.measures.score import Score, scored, undefined
from vision_sae.measures.suite import MEASURES, Measure, chosen, measured
from vision_sae.sae import SAE, SAEConfig
from vision_sae.sparse.codes import Codes

from .conftest import Planted, case_of, identity


def test_a_nan_needs_a_reason_and_a_number_has_none() -> None:
    with pytest.raises(ValueError, match="NaN needs a reason"):
        Score(math.nan)
    with pytest.raises(ValueError, match="NaN needs a reason"):
        Score(1.0, "because")
    assert scored(math.nan, "constant").reason == "constant"
    assert scored(2.0, "constant") == Score(2.0)


@given(st.floats(allow_nan=False, allow_infinity=False), st.none() | st.integers(0, 9))
def test_scores_come_back_from_json(value: float, n: int | None) -> None:
    for score in (Score(value, n=n), undefined("no rows", n=n)):
        back = Score.from_dict(score.as_dict())
        assert back.as_dict() == score.as_dict()


def test_an_sae_and_a_planted_dictionary_are_dictionaries() -> None:
    assert isinstance(SAE(SAEConfig.of(4, 8, "topk", 2)), Dictionary)
    assert isinstance(identity(3), Dictionary)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 9), st.integers(0, 9))
def test_codes_are_joined_and_cut_as_their_dense_rows_are(
    sizes: list[int], first: int, last: int
) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    parts = [torch.randn(n, 3, generator=generator).relu() for n in sizes]
    whole, dense = Codes.joined([Codes.of_dense(p) for p in parts]), torch.cat(parts)
    assert torch.equal(whole.to_dense(), dense)
    cut = slice(min(first, last), max(first, last))
    assert torch.equal(whole.rows_at(cut).to_dense(), dense[cut])


def test_an_encoding_equals_encoding_in_one_piece() -> None:
    x = torch.randn(2 * BLOCK + 6, 4)
    sae = SAE(SAEConfig.of(4, 8, "topk", 2))
    sae.train()
    found = Encoding(sae, Sample(x, Layout(tokens=2)))
    with torch.no_grad():
        dense = sae.encode(x).to_dense()
        assert torch.allclose(found.codes.to_dense(), dense)
        assert torch.allclose(found.x_hat, sae(x).x_hat)
    per_image = dense.view(-1, 2, 8)
    assert torch.allclose(found.pooled(), per_image.abs().amax(1))
    assert torch.allclose(found.pooled("mean"), per_image.mean(1))
    assert sae.training  # as it was
    images, values = found.image_codes.of(3)
    assert torch.equal(found.pooled()[images, 3], values)
    assert len(images) == int((found.pooled()[:, 3] > 0).sum())


def test_the_identity_explains_everything(random_rows: Tensor) -> None:
    found = measured(case_of(random_rows), MEASURES[0])
    assert found["fvu"].value == pytest.approx(0)
    assert found["cosine"].value == pytest.approx(1)
    assert found["l0"] == Score(6.0, n=40)
    assert found["zeros"] == Score(0.0, n=40)
    assert found["dense"] == Score(1.0, n=6)


def test_the_mean_explains_nothing_and_its_latents_are_dead(random_rows: Tensor) -> None:
    rows = random_rows - random_rows.mean(0)
    found = measured(case_of(rows, Planted(torch.zeros_like, torch.eye(6))), MEASURES[0])
    assert found["fvu"].value == pytest.approx(1)
    assert (found["l0"].value, found["dead"].value) == (0, 1)


def test_constant_rows_have_no_fvu_and_the_reason_is_told() -> None:
    found = measured(case_of(torch.ones(8, 3)), MEASURES[0])
    assert found["fvu"].reason == "the activations are constant, so there is no variance to explain"


def test_what_a_measure_needs_is_looked_for_first(random_rows: Tensor) -> None:
    def never(case: Case) -> dict[str, Score]:
        raise AssertionError

    measure = Measure("m", never, {"a": "higher", "b": "lower"}, ("embeddings",))
    found = measured(case_of(random_rows), measure)
    assert {s.reason for s in found.values()} == {
        "no embeddings of the images by another model were given"
    }


def test_a_refusal_becomes_the_reason_of_every_score(random_rows: Tensor) -> None:
    def refuses(case: Case) -> dict[str, Score]:
        raise DataError("40 images; at least 50 are needed")

    found = measured(case_of(random_rows), Measure("m", refuses, {"a": "higher", "b": "lower"}))
    assert {name: s.reason for name, s in found.items()} == dict.fromkeys(
        "ab", "40 images; at least 50 are needed"
    )


def test_measures_are_chosen_by_name_in_the_order_of_the_table() -> None:
    assert chosen() == MEASURES
    assert chosen(["reconstruction"]) == MEASURES[:1]
    with pytest.raises(UnknownName, match="no measure 'fuv'"):
        chosen(["fuv"])


def test_no_two_scores_of_the_suite_share_a_name() -> None:
    names = [name for measure in suite.MEASURES for name in measure.scores]
    assert len(names) == len(set(names))
