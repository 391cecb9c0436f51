"""What the adapters of text encoders share."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

from torch import nn

from vision_sae.errors import DataError

Tokenize = Callable[[list[str]], Any]  # texts to a batch, as many tokens for each of them


class TextAdapter:
    """A text encoder: `forward(model, tokenize(texts))` is a pass that reaches every site.

    Reads str and Prompt. A text has no tokens that stand before it: `prefix_tokens` is 0, and a
    token that begins every text counts as one of its tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenize: Tokenize,
        forward: Callable[[nn.Module, Any], Any],
        *,
        name: str,
    ) -> None:
        self.model, self.tokenize, self.forward, self.name = model, tokenize, forward, name
        self.prefix_tokens = self.registers = 0
        self.reads: Literal["images", "texts"] = "texts"

    def prepare(self, items: Sequence[Any]) -> Any:
        """Raises DataError for an item that is neither a text nor a prompt."""
        return self.tokenize([text_of(item) for item in items])

    def run(self, batch: Any) -> Any:
        return self.forward(self.model, batch)

    def probe(self, batch: Any) -> Any:
        return self.run(batch)


def text_of(item: Any) -> str:
    """The text of a str or a Prompt. Raises DataError for anything else."""
    text = getattr(item, "text", item)
    if not isinstance(text, str):
        raise DataError(
            f"a text encoder reads texts (str or Prompt), got {type(item).__name__}; "
            "images need the model's image adapter"
        )
    return text


def on_first_use(load: Callable[[], Tokenize]) -> Tokenize:
    """A tokenizer that is loaded when the first text comes, since many are fetched from the hub."""
    loaded = cache(load)
    return lambda texts: loaded()(texts)
