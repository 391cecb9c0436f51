"""What the sites of a model will give, found without computing anything."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vision_sae.errors import DataError, VisionSAEError
from vision_sae.model.adapter import Adapter, StepAdapter, on_device, repeated
from vision_sae.model.hooks import capture, inference
from vision_sae.model.sites import Site, site_from_shapes
from vision_sae.model.taps import plain, tensor_of

log = logging.getLogger(__name__)
Shape = tuple[int, ...]


def probe_site(adapter: Adapter, site: str, example: Any) -> Site:
    """A site's layout; `example` is a prepared batch of one.

    From forward passes of two and three on tensors that have shapes and no numbers; a model that
    cannot run on those (it looks at values) runs for real. Raises UnknownName for a path that is
    not there and DataError when its output is no tensor or does not depend on the batch.
    """
    return probe_sites(adapter, [site], example)[site]


def probe_sites(adapter: Adapter, sites: Sequence[str], example: Any) -> dict[str, Site]:
    """Several sites in one go; see `probe_site`."""
    two, three = _without_numbers(adapter, lambda some: _shapes(some, sites, example))
    for site in sites:
        if site not in two:
            raise DataError(f"site {site!r} of {adapter.name} never ran in the forward pass")
    return {s: _site(adapter, s, two[s], three[s]) for s in sites}


def all_sites(adapter: Adapter, example: Any) -> dict[str, Site]:
    """Every module whose output is a site, in the model's order."""
    modules = [name for name, _ in plain(adapter.model).named_modules() if name]
    two, three = _without_numbers(adapter, lambda some: _outputs(some, example))
    found = {}
    for name in modules:
        if name in two and name in three:
            try:
                found[name] = _site(adapter, name, two[name], three[name])
            except DataError:  # not laid out as a site
                continue
    return found


def _site(adapter: Adapter, name: str, two: Shape, three: Shape) -> Site:
    site = site_from_shapes(name, two, three, adapter.prefix_tokens, adapter.registers)
    of_images = adapter.reads == "images" or isinstance(adapter, StepAdapter)
    words = site.layout == "tokens" and not of_images
    return replace(site, grid=None) if words else site


def _shapes(adapter: Adapter, sites: Sequence[str], example: Any) -> list[dict[str, Shape]]:
    """Of batches of two and three."""
    found = []
    for b in (2, 3):
        with inference(adapter.model), capture(adapter.model, sites, stop_early=True) as captured:
            adapter.probe(on_device(adapter, repeated(example, b)))
        found.append({site: tuple(tensor.shape) for site, tensor in captured.items()})
    return found


def _outputs(adapter: Adapter, example: Any) -> list[dict[str, Shape]]:
    found: list[dict[str, Shape]] = [{}, {}]
    for shapes, b in zip(found, (2, 3), strict=True):
        handles = [
            module.register_forward_hook(_shape_noted(name, shapes))
            for name, module in plain(adapter.model).named_modules()
            if name
        ]
        try:
            with inference(adapter.model):
                adapter.probe(on_device(adapter, repeated(example, b)))
        finally:
            for handle in handles:
                handle.remove()
    return found


def _shape_noted(name: str, shapes: dict[str, Shape]) -> Any:
    def hook(module: Any, args: Any, output: Any) -> None:
        with suppress(DataError):  # no tensor
            shapes[name] = tuple(tensor_of(output, name).shape)

    return hook


def _without_numbers(
    adapter: Adapter, look: Callable[[Adapter], list[dict[str, Shape]]]
) -> list[dict[str, Shape]]:
    """`look` at a copy of the adapter whose weights have no numbers, or at the adapter itself."""
    try:
        with _fake(adapter) as empty:
            return look(empty)
    except VisionSAEError:
        raise
    except Exception as error:  # whatever a model does that needs numbers
        log.debug("%s is probed for real: %s", adapter.name, error)
        return look(adapter)


@contextmanager
def _fake(adapter: Adapter) -> Iterator[Adapter]:
    """A copy on the meta device, whose tensors have shapes and no numbers.

    A copy, so that no cache in the model keeps them; caches outside of it tell devices apart.
    """
    model = plain(adapter.model)
    memo: dict[int, Any] = {id(b): b.to("meta") for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    empty = copy.copy(adapter)
    empty.model = copy.deepcopy(model, memo)
    with torch.inference_mode():
        yield empty
