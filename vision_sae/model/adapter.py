"""The one seam to the world of models: an Adapter turns images or texts into a forward pass."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from vision_sae import plugins
from vision_sae.provenance import Half


@runtime_checkable
class Adapter(Protocol):
    """A model, how to feed it, and how to read its sites.

    `name` is what stores and checkpoints remember; `prefix_tokens` counts the tokens that stand
    before the patches in the model's token sequences: class tokens (CLS, and in distilled models
    one more), then `registers` of them that are registers.
    """

    name: str
    model: nn.Module
    prefix_tokens: int
    registers: int
    reads: Literal["images", "texts"]

    def prepare(self, items: Sequence[Any]) -> Any:
        """PIL images, or texts and prompts, to a batch: a tensor, or a dict or list of such."""
        ...

    def run(self, batch: Any) -> Any:
        """One forward pass, or one whole sampling trajectory, that reaches every site."""
        ...

    def probe(self, batch: Any) -> Any:
        """The cheapest forward pass that gives every site its shape."""
        ...


@runtime_checkable
class StepAdapter(Adapter, Protocol):
    """A denoiser that one run reads at several timesteps.

    `timesteps` are those that are kept, in the order in which they run; `calls` counts the calls of
    the denoiser up to the last of them. `half` says which half of a guided batch is kept; with
    `both`, each step has two slots: conditional, unconditional. A `sampler`, where there is one,
    says in a word what steps from one to the next: stores of two are kept apart.
    """

    timesteps: tuple[int, ...]
    half: Half
    calls: int

    def keep(self, call: int, output: Tensor) -> Tensor | None:
        """What of a call's output belongs to the store."""
        ...

    def steps_of(self, kept: list[Tensor]) -> Tensor:
        """What was kept of a run, as [b slots ...]."""
        ...


@runtime_checkable
class TextImageAdapter(Adapter, Protocol):
    """An adapter whose model embeds images and texts in one space (CLIP, SigLIP)."""

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by to be logits over classes."""
        ...

    def embed_images(self, batch: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
        """Unit vectors."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n e"]:
        """Unit vectors."""
        ...


def load_adapter(model: str) -> Adapter:
    """An adapter by name: `emoji-clip`, `open_clip:ViT-B-32`, `timm:vit_small_patch16_224`, `toy`.

    The part before the colon names a plugin, the rest is its argument; an argument that is settings
    alone needs no colon (`emoji-diffusion?steps=50`). Raises UnknownName.
    """
    plugin = re.split("[:?]", model, maxsplit=1)[0]
    argument = model[len(plugin) :].removeprefix(":")
    adapter: Adapter = plugins.load(plugins.ADAPTERS, plugin)(argument)
    return adapter


def on_device(adapter: Adapter, batch: Any) -> Any:
    """The batch where the model's weights are."""
    device = next((p.device for p in adapter.model.parameters()), None)
    return batch if device is None else mapped(batch, lambda t: t.to(device))


def repeated(example: Any, b: int) -> Any:
    """A batch of one as a batch of b."""
    if isinstance(example, (list, tuple)):
        return list(example) * b
    return mapped(example, lambda t: t.expand(b, *t.shape[1:]))


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch with its tensors changed, whatever holds them."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: mapped(part, change) for name, part in batch.items()}
    return batch


def fingerprint(model: nn.Module, samples: int = 64) -> str:
    """A short hash of names, shapes and an even sample of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // samples)].float().cpu()
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16]
