"""What the sites of a model will give, found without computing anything."""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from vision_sae.adapter import Adapter, on_device, repeated
from vision_sae.errors import DataError, VisionSAEError
from vision_sae.hooks import capture, inference
from vision_sae.sites import Site, site_from_shapes
from vision_sae.taps import plain

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
    two, three = (_shapes(adapter, sites, example, b) for b in (2, 3))
    for site in sites:
        if site not in two:
            raise DataError(f"site {site!r} of {adapter.name} never ran in the forward pass")
    return {s: site_from_shapes(s, two[s], three[s], adapter.prefix_tokens) for s in sites}


def all_sites(adapter: Adapter, example: Any) -> dict[str, Site]:
    """Every module whose output is a site, in the model's order."""
    modules = [name for name, _ in plain(adapter.model).named_modules() if name]
    two, three = (_outputs(adapter, modules, example, b) for b in (2, 3))
    found = {}
    for name in modules:
        if name in two and name in three:
            try:
                found[name] = site_from_shapes(name, two[name], three[name], adapter.prefix_tokens)
            except DataError:  # not laid out as a site
                continue
    return found


def _shapes(adapter: Adapter, sites: Sequence[str], example: Any, b: int) -> dict[str, Shape]:
    def run(some: Adapter) -> dict[str, Shape]:
        with inference(some.model), capture(some.model, sites, stop_early=True) as captured:
            some.probe(on_device(some, repeated(example, b)))
        return {site: tuple(tensor.shape) for site, tensor in captured.items()}

    return _without_numbers(adapter, run)


def _outputs(adapter: Adapter, modules: Sequence[str], example: Any, b: int) -> dict[str, Shape]:
    def run(some: Adapter) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        handles = [
            module.register_forward_hook(_shape_noted(name, shapes))
            for name, module in plain(some.model).named_modules()
            if name
        ]
        try:
            with inference(some.model):
                some.probe(on_device(some, repeated(example, b)))
        finally:
            for handle in handles:
                handle.remove()
        return shapes

    return _without_numbers(adapter, run)


def _shape_noted(name: str, shapes: dict[str, Shape]) -> Any:
    def hook(module: Any, args: Any, output: Any) -> None:
        if isinstance(output, (tuple, list)) and output:
            output = output[0]
        if isinstance(output, Tensor):
            shapes[name] = tuple(output.shape)

    return hook


def _without_numbers(adapter: Adapter, run: Any) -> dict[str, Shape]:
    """`run` on a copy of the adapter whose weights have no numbers, or on the adapter itself."""
    try:
        with _fake(adapter) as empty:
            found: dict[str, Shape] = run(empty)
    except VisionSAEError:
        raise
    except Exception as error:  # whatever a model does that needs numbers
        log.debug("%s is probed for real: %s", adapter.name, error)
        found = run(adapter)
    return found


@contextmanager
def _fake(adapter: Adapter) -> Iterator[Adapter]:
    """A copy, so that no cache in the model is left with tensors that hold nothing."""
    plain(adapter.model)  # refuses compiled models
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    empty = copy.copy(adapter)
    with FakeCopyMode(mode):
        empty.model = copy.deepcopy(adapter.model)
    with mode, torch.inference_mode():
        yield empty
