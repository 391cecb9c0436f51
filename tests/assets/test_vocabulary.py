"""The words for emoji-diffusion's pictures."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_sae.assets.painting import LOOKS
from vision_sae.assets.vocabulary import OBJECTS, STYLES, SYNONYMS, ask, misspelt, texts


def test_the_vocabulary() -> None:
    assert len(set(OBJECTS)) == 20 and len(set(STYLES)) == 8
    assert set(LOOKS) == {"", *STYLES}
    assert set(SYNONYMS) == {*OBJECTS, *STYLES}


def test_a_synonym_is_of_one_word_alone() -> None:
    words = [word for others in SYNONYMS.values() for word in others]
    assert len(set(words)) == len(words) and not set(words) & {*OBJECTS, *STYLES}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (("pizza", "neon"), "a pizza in neon style"),
        (("pizza",), "a pizza"),
        (("", "neon"), "neon style"),
        ((), ""),
    ],
)
def test_ask(asked: tuple[str, ...], text: str) -> None:
    assert ask(*asked) == text


def test_every_pair_is_asked_differently() -> None:
    assert len({ask(name, style) for name in OBJECTS for style in ("", *STYLES)}) == 180


@given(st.sampled_from(OBJECTS + STYLES), st.integers(0, 1000))
def test_misspelt_keeps_the_first_letter_and_nearly_the_length(word: str, seed: int) -> None:
    found = misspelt(word, random.Random(seed))
    assert found[0] == word[0] and abs(len(found) - len(word)) <= 1
    assert set(found) <= set(word)
    if len(found) == len(word):
        assert sorted(found) == sorted(word)


@pytest.mark.parametrize("word", ["", "a", "ab"])
def test_words_too_short_to_misspell(word: str) -> None:
    assert misspelt(word, random.Random(0)) == word


def test_misspelt_has_several_ways() -> None:
    found = {misspelt("guitar", random.Random(seed)) for seed in range(100)}
    assert {len(word) for word in found} == {5, 6, 7}


def test_texts_are_as_many_as_asked_and_follow_the_chance() -> None:
    one, two = (texts("pizza", "neon", 50, random.Random(3)) for _ in range(2))
    assert one == two and len(one) == 50
    assert one != texts("pizza", "neon", 50, random.Random(4))


def test_a_third_are_plain_and_most_name_both() -> None:
    found = texts("pizza", "neon", 3000, random.Random(0))
    assert 0.3 < found.count(ask("pizza", "neon")) / 3000 < 0.5
    assert sum("pizza" in text and "neon" in text for text in found) > 1500
    assert any("margherita" in text for text in found)  # in other words
    assert any("glowing tube" in text for text in found)


def test_plain_pictures_name_no_style() -> None:
    found = texts("pizza", "", 500, random.Random(0))
    assert not any("style" in text for text in found)
