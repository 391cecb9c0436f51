"""The words of a concept: what to ask with it, what to ask without it, and what it is called."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from vision_sae.assets.vocabulary import OBJECTS, STYLES, ask
from vision_sae.errors import DataError, UnknownName


@runtime_checkable
class Words(Protocol):
    """What methods need to know of concepts ("object:pizza", "style:neon")."""

    def prompts_of(self, concept: str) -> list[str]:
        """Prompts that ask for the concept."""
        ...

    def others_of(self, concept: str) -> list[str]:
        """Prompts that ask for other values of the same factor."""
        ...

    def words(self, concept: str) -> str:
        """What the concept is called: "pizza", "neon style"."""
        ...


class VocabularyWords:
    """Words over emoji-diffusion's vocabulary: every pair of object and style, asked plainly.

    Raises UnknownName for a concept that it does not hold.
    """

    def prompts_of(self, concept: str) -> list[str]:
        factor, value = self._parsed(concept)
        if factor == "object":
            return [ask(value, style) for style in ("", *STYLES)]
        return [ask(name, value) for name in OBJECTS]

    def others_of(self, concept: str) -> list[str]:
        factor, value = self._parsed(concept)
        if factor == "object":
            return [ask(o, s) for o in OBJECTS if o != value for s in ("", *STYLES)]
        return [ask(o, s) for o in OBJECTS for s in ("", *STYLES) if s != value]

    def words(self, concept: str) -> str:
        factor, value = self._parsed(concept)
        return value if factor == "object" else ask(style=value)

    def _parsed(self, concept: str) -> tuple[str, str]:
        known = [f"object:{o}" for o in OBJECTS] + [f"style:{s}" for s in STYLES]
        if concept not in known:
            raise UnknownName("concept", concept, known)
        factor, value = concept.split(":")
        return factor, value


def asked(words: Words, concept: str) -> list[str]:
    """Prompts of a concept. Raises DataError when there are none."""
    prompts = words.prompts_of(concept)
    if not prompts:
        raise DataError(f"there are no prompts for the concept {concept!r}")
    return prompts


def left_alone(words: Words, concept: str, removed: Sequence[str]) -> list[str]:
    """Prompts without a concept and without the others that are removed beside it.

    Raises DataError when there are none.
    """
    gone = {prompt for other in removed for prompt in words.prompts_of(other)}
    prompts = [prompt for prompt in words.others_of(concept) if prompt not in gone]
    if not prompts:
        raise DataError(
            f"there are no prompts without {concept!r}: the concepts to remove "
            f"({', '.join(removed)}) are in all of them"
        )
    return prompts


def named(words: Words, concepts: Sequence[str]) -> str:
    """All concepts in one text. Raises DataError for none."""
    if not concepts:
        raise DataError("no concept to remove; name at least one, as object:pizza")
    return ", ".join(words.words(concept) for concept in concepts)
