"""The concept's words as the negative prompt: what users do first."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vision_sae.recipes.unlearn.baselines.words import VocabularyWords, Words, named
from vision_sae.recipes.unlearn.calls import (
    arguments,
    check_can_guide,
    check_guided,
    images_asked,
)
from vision_sae.recipes.unlearn.removal import Draw, Removal


@dataclass(frozen=True)
class NegativePrompt:
    """The words of all concepts in place of the empty prompt; a user's own go before them.

    Raises ConfigError for a pipeline or a call without guidance.
    """

    words: Words = field(default_factory=VocabularyWords)
    name: str = "negative prompt"

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        check_can_guide(pipe, "a negative prompt")
        text = named(self.words, concepts)

        @contextmanager
        def removal(pipe: Any) -> Iterator[Draw]:
            def draw(*args: Any, **given: Any) -> Any:
                call = arguments(pipe, args, given)
                check_guided(pipe, call, "a negative prompt")
                call["negative_prompt"] = _joined(call, text)
                return pipe(**call)

            yield draw

        return removal


def _joined(call: dict[str, Any], text: str) -> str | list[str]:
    """As many negative prompts as there are prompts, in the form the pipeline wants."""
    own = call.get("negative_prompt") or ""
    if isinstance(call.get("prompt"), str):
        return f"{own}, {text}" if own else text
    each = [own] * images_asked(call) if isinstance(own, str) else own
    return [f"{mine}, {text}" if mine else text for mine in each]
