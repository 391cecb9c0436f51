"""The one seam to the world of models: an Adapter turns images into a forward pass with sites.

A site is a module path whose output we read or edit. Shape key, here and everywhere:
b batch, n rows, t tokens of one image, d width of the site, s latents, k active latents.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from vision_sae import plugins
from vision_sae.errors import DataError
from vision_sae.hooks import capture, inference
from vision_sae.provenance import Tokens

Layout = Literal["vector", "tokens", "map"]


@dataclass(frozen=True)
class Site:
    """What a module's output looks like.

    `vector` is [b d], `tokens` is [b t d] (with the batch at `batch_axis`), `map` is [b d h w], or
    [b h w d] where `width_axis` is 3.
    `prefix` counts the class and register tokens that stand before the patches.
    """

    name: str
    layout: Layout
    width: int
    tokens: int
    prefix: int
    grid: tuple[int, int] | None
    batch_axis: int = 0
    width_axis: int = 1  # of a map


@runtime_checkable
class Adapter(Protocol):
    """A model, how to feed it images, and how to read its sites.

    `name` is what stores and checkpoints remember; `prefix_tokens` counts the tokens that stand
    before the patches in the model's token sequences (1 for a CLS token).
    """

    name: str
    model: nn.Module
    prefix_tokens: int

    def prepare(self, images: Sequence[Any]) -> Float[Tensor, "b c h w"]:
        """PIL images to the model's input."""
        ...

    def run(self, batch: Float[Tensor, "b c h w"]) -> Any:
        """One forward pass that reaches every site."""
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

    The part before the colon names a plugin, the rest is its argument. Raises UnknownName.
    """
    plugin, _, argument = model.partition(":")
    adapter: Adapter = plugins.load(plugins.ADAPTERS, plugin)(argument)
    return adapter


def probe_site(adapter: Adapter, site: str, example: Float[Tensor, "1 c h w"]) -> Site:
    """Learn a site's layout from two tiny forward passes of different batch sizes.

    Raises UnknownName for a path that is not there and DataError when its output is no tensor or
    does not depend on the batch.
    """
    shapes = []
    for b in (2, 3):
        with inference(adapter.model), capture(adapter.model, [site], stop_early=True) as captured:
            adapter.run(on_device(adapter, example.expand(b, *example.shape[1:])))
        if site not in captured:
            raise DataError(f"site {site!r} of {adapter.name} never ran in the forward pass")
        shapes.append(tuple(captured[site].shape))
    return _site_from_shapes(site, shapes[0], shapes[1], adapter.prefix_tokens)


def on_device(adapter: Adapter, batch: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The batch where the model's weights are."""
    return batch.to(next((p.device for p in adapter.model.parameters()), batch.device))


def _site_from_shapes(name: str, two: tuple[int, ...], three: tuple[int, ...], prefix: int) -> Site:
    differ = [i for i, (a, b) in enumerate(zip(two, three, strict=False)) if a != b]
    allowed = {2: [[0]], 3: [[0], [1]], 4: [[0]]}  # tokens may come as [tokens batch width]
    if len(two) != len(three) or differ not in allowed.get(len(two), []):
        raise DataError(
            f"site {name!r} gives shapes {two} and {three} for batches of 2 and 3; "
            "a site must give [batch d], [batch tokens d], [batch d h w] or [batch h w d]"
        )
    axis = differ[0]
    if len(two) == 2:
        return Site(name, "vector", two[1], 1, 0, None)
    if len(two) == 4:
        last = two[1] == two[2] != two[3]  # square maps tell; Swin and others give [b h w d]
        h, w, d = (two[1], two[2], two[3]) if last else (two[2], two[3], two[1])
        return Site(name, "map", d, h * w, 0, (h, w), width_axis=3 if last else 1)
    tokens = two[1 - axis]
    side = round((tokens - prefix) ** 0.5)
    grid = (side, side) if side * side == tokens - prefix and side else None
    return Site(name, "tokens", two[2], tokens, prefix, grid, axis)


def to_tokens(output: Tensor, site: Site) -> Float[Tensor, "b t d"]:
    """A site's output as tokens."""
    if site.layout == "vector":
        return output[:, None, :]
    if site.layout == "map":
        return output.movedim(site.width_axis, 3).flatten(1, 2)
    return output.movedim(site.batch_axis, 0)


def from_tokens(tokens: Float[Tensor, "b t d"], site: Site) -> Tensor:
    """The inverse of `to_tokens`."""
    if site.layout == "vector":
        return tokens[:, 0, :]
    if site.layout == "map":
        assert site.grid is not None
        output = tokens.reshape(len(tokens), *site.grid, site.width)
        return output.movedim(3, site.width_axis)
    return tokens.movedim(0, site.batch_axis)


def token_span(site: Site, which: Tokens) -> slice:
    """Where the class token, the patches (also those to be pooled) or all tokens stand.

    Raises DataError for a class token that is not there.
    """
    if which == "cls" and not site.prefix:
        raise DataError(f"site {site.name!r} has no class token; choose patches, pooled or all")
    starts = {"cls": 0, "all": 0, "patches": site.prefix, "pooled": site.prefix}
    return slice(starts[which], 1 if which == "cls" else site.tokens)


def select_tokens(
    tokens: Float[Tensor, "b t d"], site: Site, which: Tokens
) -> Float[Tensor, "b u d"]:
    """Keep the class token, the patches, the mean of the patches (`pooled`), or all.

    Raises DataError when the site has no such tokens.
    """
    if which == "patches" and site.layout == "vector":
        raise DataError(f"site {site.name!r} gives one vector per image; choose pooled or all")
    chosen = tokens[:, token_span(site, which)]
    return chosen.mean(1, keepdim=True) if which == "pooled" else chosen


def fingerprint(model: nn.Module, samples: int = 64) -> str:
    """A short hash of names, shapes and an even sample of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // samples)].float().cpu()
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16]
