"""Read and edit what sites give; every hook is gone when the block ends, whatever happened."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from vision_sae.model.taps import OnTensor, find_module, tap, tensor_of

__all__ = ["Captured", "capture", "edit", "evaluation", "find_module", "inference", "tensor_of"]

Keep = Callable[[int, Tensor], Tensor | None]  # number of the call, tensor -> what is kept


class _Enough(Exception):
    """Raised inside a forward pass once the last wanted site has run."""


class Captured(dict[str, Tensor]):
    """Of each site the tensor of its last call; `calls` has what `keep` kept of all calls."""

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.calls: dict[str, list[Tensor]] = {site: [] for site in sites}
        self.ran = dict.fromkeys(sites, 0)


@contextmanager
def capture(
    model: nn.Module,
    sites: Sequence[str],
    *,
    stop_early: bool = False,
    calls: int = 1,
    keep: Keep | None = None,
) -> Iterator[Captured]:
    """Fill a dict with what each of `sites` gives on a forward pass.

    With `stop_early` the forward pass ends, and returns control to the end of the block, as soon
    as every site has run `calls` times. `keep` chooses from each call of a module that runs several
    times. Raises UnknownName, ConfigError (a compiled model), or DataError when there is no tensor.

        with capture(model, ["blocks.3"]) as acts:
            model(images)
        acts["blocks.3"]
    """
    captured = Captured(sites)

    def reader(site: str) -> OnTensor:
        def read(tensor: Tensor) -> None:
            number, captured.ran[site] = captured.ran[site], captured.ran[site] + 1
            enough = stop_early and min(captured.ran.values()) >= calls
            _note(captured, site, number, tensor.detach(), keep, copy=not enough)
            if enough:
                raise _Enough

        return read

    with _taps(model, {site: reader(site) for site in sites}), suppress(_Enough):
        yield captured


def _note(
    captured: Captured, site: str, number: int, tensor: Tensor, keep: Keep | None, *, copy: bool
) -> None:
    kept = keep(number, tensor) if keep else tensor
    if kept is None:
        return
    # a copy, unless the pass ends here: what follows may work in place, as ReLU(inplace=True) does
    kept = kept.clone() if copy else kept
    if keep:
        captured.calls[site].append(kept)
    captured[site] = kept


@contextmanager
def edit(model: nn.Module, site: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace what a site gives by `change` of it on each forward pass inside the block.

    Other tensors beside it stay. An edited input is what the module reads; an edited update is
    added to the input. Raises UnknownName, ConfigError, or DataError when there is no tensor.
    """
    with _taps(model, {site: change}):
        yield


@contextmanager
def _taps(model: nn.Module, readers: dict[str, OnTensor]) -> Iterator[None]:
    handles = []
    try:
        for site, reader in readers.items():
            handles += tap(model, site, reader)
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; all training flags are put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside the block."""
    with evaluation(model), torch.inference_mode():
        yield
