"""Words to name with: what is left out is counted and told, and what cannot be used is refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.adapters.toy import ToyAdapter
from vision_sae.errors import ConfigError, DataError
from vision_sae.naming import (
    check_templates,
    embed_words,
    frequent_words,
    read_vocabulary,
    vocabulary_of,
)


def test_repeats_and_empty_lines_are_counted_and_told(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("cat\n\n dog \ncat\n  \ncat\nbird\ndog\n", "utf-8")
    found = read_vocabulary(path)
    assert found.words == ["cat", "dog", "bird"]
    assert (found.duplicates, found.empty, found.repeated) == (3, 2, ("cat", "dog"))
    assert found.left_out() == f"{path}: left out 3 repeated words (cat, dog) and 2 empty lines"
    assert vocabulary_of(["a", "b"], "it").left_out() == ""


@given(st.lists(st.text(" abc", max_size=3), min_size=5, max_size=30))
def test_every_line_is_kept_or_counted(lines: list[str]) -> None:
    lines = [*lines, "first", "second"]
    found = vocabulary_of(lines, "it")
    assert len(found.words) + found.duplicates + found.empty == len(lines)
    assert set(found.words) == {line.strip() for line in lines} - {""}
    assert len(set(found.words)) == len(found.words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n \n", r"holds 0 words; .* at least 2 \(.*left out 2 empty lines\)"),
        ("one\none\n", r"holds 1 words; .*left out 1 repeated word \(one\)"),
    ],
)
def test_a_vocabulary_needs_two_words(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_vocabulary(tmp_path / "words.txt")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00c")
    with pytest.raises(DataError, match=r"words\.txt is no text in UTF-8"):
        read_vocabulary(tmp_path / "words.txt")


def test_frequent_words_are_plain_words() -> None:
    pytest.importorskip("wordfreq")
    found = frequent_words(500)
    assert len(found.words) == 500 and {"world", "people"} <= set(found.words)
    assert all(word.isalpha() and len(word) > 2 for word in found.words)
    assert found.source == "the 500 most frequent English words"


class Letters(ToyAdapter):
    """Its texts lie in a space of letters: one dimension for each of a to z, and one for others."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        rows = torch.zeros(len(texts), 27)
        for row, text in zip(rows, texts, strict=True):
            for letter in text:
                row[ord(letter) - 97 if letter.isalpha() else 26] += 1
        return torch.nn.functional.normalize(rows, dim=1)


def test_templates_are_averaged_over_unit_embeddings() -> None:
    model, words = Letters(), ["ab", "c", "xyz"] * 100  # more than one batch
    told: list[int] = []
    found = embed_words(model, words, ["{}", "big {}"], tell=told.append)
    plain, big = model.embed_texts(words), model.embed_texts([f"big {word}" for word in words])
    assert torch.allclose(found, torch.nn.functional.normalize(plain + big, dim=1), atol=1e-6)
    assert sum(told) == 300 and len(told) > 1
    assert torch.allclose(embed_words(model, words[:3]), plain[:3], atol=1e-6)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{} {name}"])
def test_a_template_has_one_place_for_the_word(template: str) -> None:
    with pytest.raises(ConfigError, match=r"one \{\} for the word"):
        check_templates(["{}", template])
    with pytest.raises(ConfigError, match="no template was given"):
        check_templates([])
