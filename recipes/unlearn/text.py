"""Steering by an SAE on a text encoder (Concept Steerers, Kim & Ghadiyaram 2025, arXiv 2501.19066).

The concept's own prompt is encoded, its codes without competition f = relu(z) are decoded without
bias, and V = f W_dec is added to the encoder's layer position by position: with one sign on the
pass of the prompts, with the other on that of the negative prompts.

Shape key: b texts, t tokens, d width of the SAE (of all its layers together), n rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from vision_sae.adapters.diffusion_inputs import denoiser_of
from vision_sae.errors import ConfigError
from vision_sae.recipes.unlearn.calls import wrapped
from vision_sae.recipes.unlearn.plan import TextEdit
from vision_sae.recipes.unlearn.text_layers import (
    Layers,
    hooked,
    layers_of,
    steering_vector,
    widths_of,
)
from vision_sae.sae import SAE

_STEERED = WeakSet[Any]()


class _Passes:
    """Tells an encoder's pass of the prompts from that of the negative prompts.

    A pipeline's `encode_prompt` runs each encoder on the prompts, unless it is given their
    embeddings, and then on the negative prompts, unless it needs none. Flux calls it twice instead.
    `check_inputs` begins a call of the pipeline; the first call of the denoiser ends its encoding.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.runs: dict[Any, int] = {}  # layer of an encoder -> its runs in this encode_prompt
        self.given = False  # the prompts' embeddings
        self.encoded = 0  # calls of encode_prompt in this call of the pipeline
        self.sampling = False

    def negative(self, layer: Any) -> bool:
        """Count a run of a layer, and say whether it reads negative prompts."""
        run = self.runs[layer] = self.runs.get(layer, 0) + 1
        return self.given or run > 1 or (self.sampling and self.encoded > 1)

    @contextmanager
    def following(self) -> Iterator[None]:
        handle = denoiser_of(self.pipe).register_forward_pre_hook(self._sampled)
        try:
            with (
                wrapped(self.pipe, "check_inputs", self._begun),
                wrapped(self.pipe, "encode_prompt", self._encoding),
            ):
                yield
        finally:
            handle.remove()

    def _begun(self, given: Mapping[str, Any]) -> None:
        self.encoded, self.sampling = 0, True

    def _encoding(self, given: Mapping[str, Any]) -> None:
        self.encoded += 1
        self.runs, self.given = {}, given.get("prompt_embeds") is not None

    def _sampled(self, module: Any, args: Any) -> None:
        self.encoded, self.sampling = 0, False


@contextmanager
def steer_text(
    pipe: Any,
    sae: SAE,
    concept: str | Sequence[str],
    strength: float,
    *,
    layer: Layers | None = None,
    away: bool = True,
    negative: bool = True,
) -> Iterator[Any]:
    """Steer away from a concept's prompt, or towards it, while the pipeline draws; gives the pipe.

    On the prompts' pass -strength * V is added (`away`) or +strength * V; on the negative prompts'
    pass the opposite, unless `negative` is False. Published: strength 0.5 (nudity) and 0.7
    (violence). The vectors of several prompts are added up. Where a pass has more tokens than the
    concept's own, the rest stays; SDXL runs no negative pass where negatives are zeros. Raises
    ConfigError for layers or an SAE that do not fit, and when text is being steered already.

        with steer_text(pipe, sae, "violence, blood", 0.7):
            image = pipe("a street").images[0]
    """
    concepts = [concept] if isinstance(concept, str) else concept
    if not concepts:
        raise ConfigError("no concept to steer by; give a prompt, as 'violence, blood'")
    signed = strength if away else -strength
    settings: dict[str, Any] = {"layer": layer, "negative": negative}
    edits = [e for each in concepts for e in text_edits(pipe, sae, each, signed, **settings)]
    with steered(pipe, edits):
        yield pipe


def text_edits(
    pipe: Any,
    sae: SAE,
    concept: str,
    strength: float,
    *,
    layer: Layers | None = None,
    negative: bool = True,
) -> tuple[TextEdit, ...]:
    """What `steer_text` does at each layer, for a plan; a strength below 0 steers towards."""
    layers, vector = layers_of(pipe, layer), steering_vector(pipe, sae, concept, layer).cpu()
    parts = vector.split(widths_of(pipe, layer, vector.shape[1]), 1)
    return tuple(
        TextEdit(each.component, each.number, part.contiguous(), strength, negative)
        for each, part in zip(layers, parts, strict=True)
    )


@contextmanager
def steered(pipe: Any, edits: Sequence[TextEdit]) -> Iterator[None]:
    """Edits of text inside the block; those of one layer are added up.

    Raises ConfigError for a layer that is not there, and when text is being steered already.
    """
    if pipe in _STEERED:
        raise ConfigError(
            "this pipeline's text is being steered already; give all concepts together: "
            "steer_text(pipe, sae, ['one', 'other'], strength), or unlearn(pipe, [plan, other])"
        )
    passes = _Passes(pipe)
    by_layer: dict[tuple[str, int], list[TextEdit]] = {}
    for edit in edits:
        if edit.strength:
            by_layer.setdefault((edit.component, edit.layer), []).append(edit)
    changes: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = [
        (layers_of(pipe, {component: number})[0].module, _Steer(some, passes))
        for (component, number), some in by_layer.items()
    ]
    _STEERED.add(pipe)
    try:
        with passes.following(), hooked(changes):
            yield
    finally:
        _STEERED.discard(pipe)


class _Steer:
    """Adds the vectors of one layer's edits to its tokens."""

    def __init__(self, edits: Sequence[TextEdit], passes: _Passes) -> None:
        self.edits, self.passes = edits, passes

    def __call__(self, states: Tensor) -> Tensor:
        negative = self.passes.negative(self)
        changed = states.clone()
        for edit in self.edits:
            t = min(states.shape[1], len(edit.vector))
            sign = edit.strength if negative else -edit.strength
            if edit.negative or not negative:
                changed[:, :t] += sign * edit.vector[:t].to(states)
        return changed
