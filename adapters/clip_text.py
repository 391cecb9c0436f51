"""The text towers of open_clip's models."""

from typing import Any

from torch import nn

from vision_sae.adapters.clip import full_name, load
from vision_sae.adapters.texts import TextAdapter, Tokenize


def wrap(model: nn.Module, tokenizer: Tokenize, *, name: str) -> TextAdapter:
    """An open_clip model that you have loaded, with `open_clip.get_tokenizer(...)`.

    Sites are paths in the model: `transformer.resblocks.4`, or `text.transformer.resblocks.4`
    where the text tower is a module of its own (SigLIP, EVA, CoCa); `ln_final` gives the tokens
    before pooling and projection. Every text takes the model's whole length (77, SigLIP 64).
    """
    return TextAdapter(model.eval(), tokenizer, _forward, name=name)


def from_name(argument: str) -> TextAdapter:
    """The arguments of `open_clip:` (see `clip.from_name`), and the same errors."""
    model, _, tokenizer = load(argument, "open_clip-text")
    return wrap(model, tokenizer, name=full_name(argument, "open_clip-text"))


def _forward(model: nn.Module, batch: Any) -> Any:
    return model.encode_text(batch)  # type: ignore[operator]
