"""The words that latents are named from: given, shipped, or what the images are labelled with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_sae.data import open_data
from vision_sae.errors import DataError
from vision_sae.naming import Vocabulary, frequent_words, read_vocabulary, vocabulary_of
from vision_sae.store import Store

LABELS = ("name", "label")  # what an image is called
EMOJI = "emoji-canvas"


def vocabulary_for(words: Sequence[str] | Vocabulary | None, store: Store) -> Vocabulary:
    """Words as they are given, or the names that a store's images carry. Raises DataError."""
    if isinstance(words, Vocabulary):
        return words
    if words is None:
        names = known_names(store)
        return vocabulary_of(names, f"the {len(names):,} names of the images")
    return vocabulary_of(words, "the given words")


def open_vocabulary(spec: str) -> Vocabulary:
    """`words`, `emoji`, or a file with a word or phrase per line.

    `words` are the 20,000 most frequent English words, `emoji` the names, keywords and categories
    of EmojiCanvas. Raises DataError, MissingExtra.
    """
    if spec == "words":
        return frequent_words()
    if spec == "emoji":
        return emoji_words()
    if not Path(spec).is_file():
        raise DataError(
            f"no vocabulary {spec!r}: it is words, emoji, or a text file with a word or phrase "
            "per line"
        )
    return read_vocabulary(spec)


def known_names(store: Store) -> list[str]:
    """The names of the store's images, as a vocabulary. Raises DataError when they have none."""
    names = {str(a[k]) for a in store.about for k in LABELS if k in a}
    if len(names) < 2:
        raise DataError(
            "the images carry no names to choose from; pass --vocabulary words, emoji or a file"
        )
    return sorted(names)


def emoji_words() -> Vocabulary:
    """The emoji's names, and the words for what they have in common: keywords, categories, ..."""
    facts = [item.about for item in open_data(EMOJI).items()]
    words = sorted({word for about in facts for word in _facts(about)})
    return vocabulary_of(words, f"the {len(words):,} names and keywords of emoji")


def _facts(about: dict[str, Any]) -> set[str]:
    told = [str(about[k]) for k in ("name", "category", "subcategory", "colour") if k in about]
    told += [str(about[k]) for k in ("shape", "gender") if k in about]
    told += [f"{about[k]} {k.replace('_', ' ')}" for k in ("style", "skin_tone") if k in about]
    return {one.replace("-", " ") for one in [*told, *about.get("keywords", [])]}
