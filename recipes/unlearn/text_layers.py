"""Layers of a pipeline's text encoders: which an SAE reads, what they give, and hooks on them.

Shape key: t tokens, d width of the SAE (of all its layers together), n rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vision_sae.adapters.diffusion_inputs import conditions, image_size
from vision_sae.errors import ConfigError, DataError
from vision_sae.sae import SAE

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


@contextmanager
def _outputs(layers: Sequence[Layer]) -> Iterator[dict[str, Tensor]]:
    """What each layer gave last."""
    found: dict[str, Tensor] = {}

    def note(name: str, output: Tensor) -> None:
        found[name] = output.detach().clone()

    with hooked([(layer.module, partial(note, layer.component)) for layer in layers]):
        yield found


@contextmanager
def hooked(
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


def widths_of(pipe: Any, layer: Layers | None, d: int) -> list[int]:
    layers = layers_of(pipe, layer)
    if len(layers) == 1:
        return [d]
    return [_width(getattr(pipe, each.component)) for each in layers]


def _width(encoder: Any) -> int:
    return int(getattr(encoder.config, "hidden_size", None) or encoder.config.d_model)
