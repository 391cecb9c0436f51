"""Names from directions, with runner-up, margin and threshold; and as a file."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from vision_sae.errors import DataError
from vision_sae.naming import (
    NAMES,
    UNNAMED,
    Known,
    Name,
    Naming,
    name_latents,
    nearest,
    read_names,
    read_naming,
    with_known,
    with_tests,
    write_naming,
)
from vision_sae.naming import (
    Tested as Held,
)

WORDS = ["a", "b", "c", "d"]


def test_the_nearest_word_with_its_runner_up_and_margin() -> None:
    directions = normalize(torch.tensor([[0.0, 3.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.9]]), dim=1)
    names = name_latents([5, 9], directions, WORDS, torch.eye(4), centre=False)
    assert [(n.latent, n.name, n.runner_up) for n in names] == [(5, "b", "c"), (9, "a", "d")]
    assert names[0].score == pytest.approx(3 / 10**0.5)
    assert names[0].margin == pytest.approx(2 / 10**0.5)


def test_below_the_threshold_a_latent_is_unnamed_but_its_word_is_kept() -> None:
    directions = normalize(torch.tensor([[1.0, 0.9, 0.8, 0.7]]), dim=1)
    (name,) = name_latents([0], directions, WORDS, torch.eye(4), centre=False, threshold=0.7)
    assert (name.name, name.word) == (UNNAMED, "a") and not name.detects


def test_centring_takes_off_what_all_words_share() -> None:
    texts = normalize(torch.eye(4) + 10, dim=1)
    direction = normalize(torch.eye(4)[2:3] - 0.25, dim=1)
    raw, centred = (
        name_latents([0], direction, WORDS, texts, centre=centre)[0] for centre in (False, True)
    )
    assert raw.name == centred.name == "c"
    assert raw.score < 0.2 and centred.score > 0.99


def test_a_word_that_was_chosen_otherwise_has_the_nearest_other_as_runner_up() -> None:
    directions = normalize(torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]]), dim=1)
    chosen = torch.tensor([1, 3])
    one, two = name_latents([0, 1], directions, WORDS, torch.eye(4), chosen=chosen, centre=False)
    assert (one.name, one.runner_up) == ("b", "a") and one.margin < 0
    assert (two.name, two.runner_up) == ("d", "c") and two.margin > 0


@given(st.integers(0, 1000))
def test_nearest_is_a_sort_of_all_cosines(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    directions, texts = (torch.randn(n, 5, generator=generator) for n in (6, 9))
    found = nearest(directions, texts, 4)
    assert torch.equal(found, (directions @ texts.T).argsort(1, descending=True)[:, :4])
    assert nearest(directions, texts, 50).shape == (6, 9)


def test_one_word_is_no_choice() -> None:
    with pytest.raises(DataError, match="at least 2 words to choose from; got 1"):
        name_latents([0], torch.eye(2)[:1], ["a"], torch.eye(2)[:1])


def test_a_name_detects_from_an_auroc_of_080() -> None:
    names = [Name(i, "a", 0.5, "b", 0.1, "a") for i in range(3)]
    tests = [Held(0.8, 9, 50), Held(0.79, 9, 50), Held(None, 2, 50, "too few")]
    known = [Known(0.5, 0.1), Known(0.4, 0.6), Known(None, None)]
    found = with_known(with_tests(names, tests), known)
    assert Known(0.4, 0.4).verdict == "wrong"
    assert [n.detects for n in found] == [True, False, False]
    assert [n.verdict for n in found] == ["right", "narrow", None]
    assert found[2].untested == "too few" and found[0].positives == 9


def test_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    names = [Name(3, UNNAMED, 0.1, "b", 0.05, "ä", 0.75, 6, 40, "", None, None)]
    names.append(Name(7, "b", 0.4, "a", 0.2, "b", untested="it fires on 0 of 9"))
    naming = Naming(names, {"vocabulary": "the given words", "centred": True})
    assert write_naming(tmp_path, naming) == tmp_path / NAMES
    assert read_naming(tmp_path) == naming
    assert read_names(tmp_path) == {3: names[0], 7: names[1]}
    (tmp_path / "sae.pt").touch()
    assert read_names(tmp_path / "sae.pt") == read_names(tmp_path)  # another library's file


def test_an_sae_without_names_and_a_file_of_another_form(tmp_path: Path) -> None:
    assert read_names(tmp_path) == {} and read_naming(tmp_path) == Naming([], {})
    for wrong in ([], {"names": [{"latent": 1}], "how": {}}, {"names": []}):
        (tmp_path / NAMES).write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="holds no names .*run `vision-sae name` again"):
            read_names(tmp_path)
