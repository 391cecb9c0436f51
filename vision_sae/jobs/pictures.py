"""The images behind a store's rows: from the source that they came from, or drawn anew."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.data import ImageSource, open_data
from vision_sae.errors import DataError
from vision_sae.matching import check_model
from vision_sae.model.adapter import Adapter, StepAdapter, TextImageAdapter, on_device
from vision_sae.model.hooks import inference
from vision_sae.store import Store

DRAWN = 16  # pictures that are drawn at a time


@runtime_checkable
class DrawingAdapter(StepAdapter, Protocol):
    """A denoiser that reads prompts; `run` gives the final latents of its diffusers pipeline."""

    pipe: Any
    size: Any  # (height, width) of the pictures


def from_prompts(store: Store) -> bool:
    """Whether a store's rows are of texts, so that its pictures must be drawn."""
    return _gives(open_data(store.index.provenance.data, commands=False)) == "texts"


def picture_source(store: Store, adapter: Adapter | None = None) -> ImageSource:
    """Where the pictures of a store are, or the prompts that `adapter` draws them from.

    Raises DataError for prompts without a model that draws, MismatchError for another model.
    """
    source = open_data(store.index.provenance.data, commands=False)
    if _gives(source) == "images":
        return source
    if adapter is None:
        raise DataError(
            f"{store.folder} has no picture for each row to show: it is of {source.name}, which "
            f"are prompts; {store.index.provenance.model} must draw them: pass that adapter"
        )
    check_model(adapter, store)
    if not _draws(adapter):
        raise DataError(
            f"{store.folder} has no pictures to show: it is of {source.name}, which are prompts, "
            f"and {adapter.name} draws none"
        )
    return source


def _gives(source: ImageSource) -> str:
    return getattr(source, "gives", "images")


def _draws(adapter: Adapter) -> bool:
    if not isinstance(adapter, DrawingAdapter) or adapter.reads != "texts":
        return False
    return getattr(adapter.pipe, "vae", None) is not None


def pictures(
    store: Store, images: Collection[int], adapter: Adapter | None = None
) -> Iterator[tuple[int, Any]]:
    """(image, PIL picture) for some of a store's images, in order, one at a time.

    Those of prompts are drawn by `adapter`. Raises as `picture_source` does, and DataError when the
    source has changed since.
    """
    source = picture_source(store, adapter)
    found = _opened(store, source, images)
    if _gives(source) == "images" or adapter is None:
        yield from found
        return
    for _, alike in groupby(found, lambda pair: getattr(pair[1], "guidance", None)):
        while group := list(islice(alike, DRAWN)):  # one guidance in a batch
            drawn = draw(adapter, [prompt for _, prompt in group])
            yield from zip([i for i, _ in group], drawn, strict=True)


def _opened(
    store: Store, source: ImageSource, images: Collection[int]
) -> Iterator[tuple[int, Any]]:
    """What some of a store's rows were made from. Raises DataError when the source has changed."""
    wanted = {store.positions[i]: i for i in images}
    if not wanted:
        return
    first = min(wanted)
    for position, item in enumerate(source.items(first), first):
        if position in wanted:
            i = wanted.pop(position)
            if item.key != store.keys[i]:
                raise DataError(
                    f"{source.name} has changed: image {position} was {store.keys[i]!r}, "
                    f"is {item.key!r}"
                )
            yield i, item.open()
        if not wanted:
            return
    raise DataError(f"{source.name} has changed: {len(wanted)} images are gone")


def draw(adapter: Any, prompts: Sequence[Any]) -> list[Any]:
    """The PIL pictures of some prompts of one guidance, as the adapter's pipeline draws them."""
    with inference(adapter.model):
        latents = adapter.run(on_device(adapter, adapter.prepare(prompts)))
        pixels = decoded(adapter.pipe, latents, adapter.size)
    found: list[Any] = adapter.pipe.image_processor.postprocess(pixels.float(), output_type="pil")
    return found


def decoded(pipe: Any, latents: Tensor, size: tuple[int, int]) -> Float[Tensor, "b 3 y x"]:
    """Pixels in -1..1 of a pipeline's final latents, by its own VAE, which is left as it was."""
    vae, config, dtype = pipe.vae, pipe.vae.config, pipe.vae.dtype
    if latents.ndim == 3:  # Flux packs squares of four positions
        latents = pipe._unpack_latents(latents, *size, pipe.vae_scale_factor)
    latents = _unscaled(latents, config)
    if dtype != torch.float16 or not getattr(config, "force_upcast", False):
        return _pixels(vae, latents)
    try:  # SDXL's overflows in half precision
        return _pixels(vae.to(torch.float32), latents)
    finally:
        vae.to(dtype)


def _pixels(vae: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 y x"]:
    with inference(vae):
        found: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return found


def _unscaled(latents: Float[Tensor, "b c h w"], config: Any) -> Float[Tensor, "b c h w"]:
    """As the VAE gave them: some pipelines shift, some standardise each channel."""
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        shift: float = getattr(config, "shift_factor", None) or 0.0
        return latents / float(config.scaling_factor) + shift
    middle, spread = (latents.new_tensor(each).view(1, -1, 1, 1) for each in (mean, std))
    return latents * spread / float(config.scaling_factor) + middle


def embed_images(
    adapter: TextImageAdapter,
    store: Store,
    images: Collection[int],
    tell: Callable[[int], None] = lambda images: None,
) -> Float[Tensor, "n e"]:
    """Unit embeddings of some images, in the order of the store."""
    rows, parts = pictures(store, images), []
    while group := list(islice(rows, 64)):
        batch = adapter.prepare([picture for _, picture in group])
        parts.append(adapter.embed_images(batch).cpu())
        tell(len(group))
    return torch.cat(parts) if parts else torch.empty(0, 0)
