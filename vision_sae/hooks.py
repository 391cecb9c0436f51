"""Read and edit what modules give, by path; every hook is gone when the block ends."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vision_sae.errors import DataError, UnknownName


class _Enough(Exception):
    """Raised inside a forward pass once the last wanted site has run."""


def find_module(model: nn.Module, path: str) -> nn.Module:
    """A module by its dotted path. Raises UnknownName with near matches."""
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not path or path not in modules:
        raise UnknownName("site", path, (m for m in modules if m))
    return modules[path]


def tensor_of(output: Any, path: str) -> Tensor:
    """The output itself, or the first tensor of a tuple, as attention modules give."""
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    if isinstance(output, Tensor):
        return output
    raise DataError(
        f"site {path!r} gives {type(output).__name__}, not a tensor or a tuple that starts with one"
    )


@contextmanager
def capture(
    model: nn.Module, paths: Sequence[str], *, stop_early: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Fill a dict with the outputs of the modules at `paths` on each forward pass.

    With `stop_early` the forward pass ends, and returns control to the end of the block, as soon
    as every path has run once. Raises UnknownName, or DataError when an output is no tensor.

        with capture(model, ["blocks.3"]) as acts:
            model(images)
        acts["blocks.3"]
    """
    captured: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # a copy: what follows may work in place, as ReLU(inplace=True) does
            captured[path] = tensor_of(output, path).detach().clone()
            if stop_early and captured.keys() >= set(paths):
                raise _Enough

        return hook

    modules = [find_module(model, path) for path in paths]
    handles = [m.register_forward_hook(keep(p)) for m, p in zip(modules, paths, strict=True)]
    try:
        yield captured
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def edit(model: nn.Module, path: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace a module's output by `change(output)` on each forward pass inside the block.

    A tuple output keeps its other parts. Raises UnknownName, or DataError for a non-tensor output.
    """

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        changed = change(tensor_of(output, path))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = find_module(model, path).register_forward_hook(hook)
    try:
        yield
    finally:
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
