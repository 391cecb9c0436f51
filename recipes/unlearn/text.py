"""Steering by an SAE on a text encoder (Concept Steerers, Kim & Ghadiyaram 2025, arXiv 2501.19066).

The concept's own prompt is encoded, its codes without competition f = relu(z) are decoded without
bias, and V = f W_dec is added to the encoder's layer position by position: with one sign on the
pass of the prompts, with the other on that of the negative prompts.

Shape key: b texts, t tokens, d width of the SAE (of all its layers together), n rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vision_sae.adapters.diffusion_inputs import conditions, denoiser_of, image_size
from vision_sae.errors import ConfigError, DataError
from vision_sae.recipes.unlearn.baselines.words import VocabularyWords, Words, asked, left_alone
from vision_sae.recipes.unlearn.calls import wrapped
from vision_sae.recipes.unlearn.removal import Draw, Removal
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, train

Layers = int | Mapping[str, int]  # of one encoder, or by component ("text_encoder": 9)

# which share of an encoder's layers has run where the published SAEs read: 10 of 12 and so on
USUAL: dict[str, dict[str, float]] = {
    "StableDiffusionPipeline": {"text_encoder": 10 / 12},
    "StableDiffusionXLPipeline": {"text_encoder": 11 / 12, "text_encoder_2": 29 / 32},
    "PixArtAlphaPipeline": {"text_encoder": 23 / 24},
    "PixArtSigmaPipeline": {"text_encoder": 23 / 24},
    "StableDiffusion3Pipeline": {"text_encoder": 11 / 12, "text_encoder_2": 29 / 32},
    "FluxPipeline": {"text_encoder_2": 23 / 24},
}


_STEERED = WeakSet[Any]()


class Layer(NamedTuple):
    """A layer of one of a pipeline's text encoders."""

    component: str
    number: int
    module: nn.Module


def layers_of(pipe: Any, layer: Layers | None = None) -> tuple[Layer, ...]:
    """The layers that an SAE reads side by side; by default where the published ones read.

    A number is of the one encoder that the default has. Raises ConfigError for a pipeline without
    a default, an encoder or a layer that is not there.
    """
    usual = next((USUAL[c.__name__] for c in type(pipe).__mro__ if c.__name__ in USUAL), None)
    if usual is None and not isinstance(layer, Mapping):
        raise ConfigError(
            f"there is no usual text-encoder layer for {type(pipe).__name__}: name it, as "
            "layer={'text_encoder': 9}"
        )
    if layer is None:
        counts = {name: len(_stack(pipe, name)) for name in usual or {}}
        layer = {name: _usual_index(usual[name], counts[name]) for name in usual or {}}  # type: ignore[index]
    elif isinstance(layer, int):
        if len(usual or {}) != 1:
            raise ConfigError(
                f"{type(pipe).__name__} has several text encoders: name the layer of each, as "
                f"layer={dict.fromkeys(usual or {}, layer)}"
            )
        layer = dict.fromkeys(usual or {}, layer)
    return tuple(_layer(pipe, name, index) for name, index in layer.items())


def _usual_index(share: float, count: int) -> int:
    return max(0, int(share * count + 1e-9) - 1)  # never the last: SDXL does not read it


def _stack(pipe: Any, component: str) -> nn.ModuleList:
    """The layers of an encoder: a CLIP's `layers`, a T5's `block`."""
    encoder = getattr(pipe, component, None)
    if not isinstance(encoder, nn.Module):
        parts = getattr(pipe, "components", {})
        found = [name for name in parts if name.startswith("text_encoder") and parts[name]]
        raise ConfigError(
            f"{type(pipe).__name__} has no text encoder {component!r}; it has "
            f"{', '.join(found) or 'none'}"
        )
    for path, module in encoder.named_modules():
        if path.rpartition(".")[2] in ("layers", "block") and isinstance(module, nn.ModuleList):
            return module
    raise ConfigError(f"{type(encoder).__name__} has no list of layers that is known")


def _layer(pipe: Any, component: str, index: int) -> Layer:
    stack = _stack(pipe, component)
    if not 0 <= index < len(stack):
        raise ConfigError(
            f"{component} has layers 0 to {len(stack) - 1}; layer {index} was asked for"
        )
    return Layer(component, index, stack[index])


# ---- reading


@contextmanager
def _outputs(layers: Sequence[Layer]) -> Iterator[dict[str, Tensor]]:
    """What each layer gave last."""
    found: dict[str, Tensor] = {}

    def note(name: str, output: Tensor) -> None:
        found[name] = output.detach().clone()

    with _hooked([(layer.module, partial(note, layer.component)) for layer in layers]):
        yield found


@contextmanager
def _hooked(
    changes: Sequence[tuple[nn.Module, Callable[[Tensor], Tensor | None]]],
) -> Iterator[None]:
    """Look at layers' outputs, or replace them.

    Before other hooks: by its own hooks transformers collects the hidden states that some
    pipelines read (SDXL, clip_skip), and those must be the changed ones.
    """
    handles: list[RemovableHandle] = []
    try:
        for module, change in changes:
            hook = partial(_on_output, change)
            handles.append(module.register_forward_hook(hook, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_output(
    change: Callable[[Tensor], Tensor | None], module: Any, args: Any, output: Any
) -> Any:
    whole = isinstance(output, Tensor)
    changed = change(output if whole else output[0])
    return changed if whole or changed is None else (changed, *output[1:])


@torch.no_grad()
def hidden_states(pipe: Any, text: str, layer: Layers | None = None) -> Float[Tensor, "t d"]:
    """A text's tokens at the layers, side by side where there are several.

    Raises DataError for encoders that give different numbers of tokens.
    """
    layers = layers_of(pipe, layer)
    with _outputs(layers) as found:
        conditions(pipe, text, image_size(pipe, None, None))
    states = [found[each.component][0].float() for each in layers]
    if len({len(state) for state in states}) > 1:
        counts = {each.component: len(found[each.component][0]) for each in layers}
        raise DataError(f"the encoders give different numbers of tokens, {counts}: take one")
    return torch.cat(states, 1)


def text_rows(pipe: Any, texts: Sequence[str], layer: Layers | None = None) -> Float[Tensor, "n d"]:
    """All tokens of all texts (padding too), to train an SAE on."""
    return torch.cat([hidden_states(pipe, text, layer) for text in texts])


@torch.no_grad()
def steering_vector(
    pipe: Any, sae: SAE, concept: str, layer: Layers | None = None
) -> Float[Tensor, "t d"]:
    """V of a concept's prompt: relu(z) W_dec at each position, every latent, no bias.

    Raises ConfigError for an SAE of another width.
    """
    states = hidden_states(pipe, concept, layer).to(sae.b_dec)
    if states.shape[1] != sae.config.d:
        places = ", ".join(f"{each.component} {each.number}" for each in layers_of(pipe, layer))
        raise ConfigError(
            f"the SAE reads width {sae.config.d}; the layers ({places}) give {states.shape[1]}"
        )
    vector: Tensor = sae.pre_activations(states).relu() @ sae.W_dec
    return vector


# ---- steering


class _Passes:
    """Tells an encoder's pass of the prompts from that of the negative prompts.

    A pipeline's `encode_prompt` runs each encoder on the prompts, unless it is given their
    embeddings, and then on the negative prompts, unless it needs none. Flux calls it twice instead.
    `check_inputs` begins a call of the pipeline; the first call of the denoiser ends its encoding.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.runs: dict[str, int] = {}  # encoder -> its runs in this encode_prompt
        self.given = False  # the prompts' embeddings
        self.encoded = 0  # calls of encode_prompt in this call of the pipeline
        self.sampling = False

    def negative(self, component: str) -> bool:
        """Count a run of an encoder, and say whether it reads negative prompts."""
        run = self.runs[component] = self.runs.get(component, 0) + 1
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
    layers, concepts = layers_of(pipe, layer), [concept] if isinstance(concept, str) else concept
    if pipe in _STEERED:
        raise ConfigError(
            "this pipeline's text is being steered already; give all concepts together: "
            "steer_text(pipe, sae, ['one', 'other'], strength)"
        )
    if not concepts:
        raise ConfigError("no concept to steer by; give a prompt, as 'violence, blood'")
    vectors = [steering_vector(pipe, sae, each, layer) for each in concepts]
    vector = (-strength if away else strength) * torch.stack(vectors).sum(0)
    parts = vector.split(_widths(pipe, layer, vector.shape[1]), 1)
    passes = _Passes(pipe)
    changes = [
        (each.module, _Steer(part, each.component, passes, negative))
        for each, part in zip(layers, parts, strict=True)
    ]
    _STEERED.add(pipe)
    try:
        with passes.following(), _hooked(changes if strength else []):
            yield pipe
    finally:
        _STEERED.discard(pipe)


class _Steer:
    """Adds a vector to one layer's tokens."""

    def __init__(
        self, vector: Float[Tensor, "t d"], component: str, passes: _Passes, negative: bool
    ) -> None:
        self.vector, self.component, self.passes = vector, component, passes
        self.both = negative

    def __call__(self, states: Tensor) -> Tensor | None:
        negative = self.passes.negative(self.component)
        if negative and not self.both:
            return None
        t = min(states.shape[1], len(self.vector))
        vector = self.vector[:t].to(states)
        changed = states.clone()
        changed[:, :t] += -vector if negative else vector
        return changed


def _widths(pipe: Any, layer: Layers | None, d: int) -> list[int]:
    layers = layers_of(pipe, layer)
    if len(layers) == 1:
        return [d]
    return [_width(getattr(pipe, each.component)) for each in layers]


def _width(encoder: Any) -> int:
    return int(getattr(encoder.config, "hidden_size", None) or encoder.config.d_model)


# ---- as a method


@dataclass(frozen=True)
class ConceptSteering:
    """Trains a k-SAE on the text encoder, and steers away from the words of all concepts.

    Without an `sae` one is trained on the prompts of `words`: those of the concepts and those
    without them.
    """

    strength: float = 0.5
    sae: SAE | None = None
    layer: Layers | None = None
    negative: bool = True
    k: int = 16
    expansion: int = 4
    updates: int = 500
    seed: int = 0
    words: Words = field(default_factory=VocabularyWords)
    name: str = "text steering"

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        sae = self.sae or self.trained(pipe, concepts)
        texts = [self.words.words(concept) for concept in concepts]

        @contextmanager
        def removal(pipe: Any) -> Iterator[Draw]:
            layer, both = self.layer, self.negative
            with steer_text(pipe, sae, texts, self.strength, layer=layer, negative=both) as draw:
                yield draw

        return removal

    def trained(self, pipe: Any, concepts: Sequence[str]) -> SAE:
        """An SAE of the tokens of all prompts. Raises DataError when there are none."""
        texts = {p for concept in concepts for p in asked(self.words, concept)}
        texts |= {p for c in concepts for p in left_alone(self.words, c, concepts)}
        rows = text_rows(pipe, sorted(texts), self.layer)
        d = rows.shape[1]
        config = SAEConfig.of(d, self.expansion * d, "topk", k=self.k)
        size = min(1024, len(rows))
        settings = TrainConfig(steps=self.updates, batch_size=size, seed=self.seed)
        return train(SAE(config, seed=self.seed), MemoryStore(rows), settings)
