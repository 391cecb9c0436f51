"""Read or replace one tensor at a module: its output, input, their difference, or its heads."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.model.sites import Place, place_of

# where the output projection of an attention module is found
PROJECTIONS = ("out_proj", "proj", "o_proj", "to_out.0", "o", "output.dense", "c_proj")

OnTensor = Callable[[Tensor], Tensor | None]  # what comes back, if anything, takes its place


def plain(model: nn.Module) -> nn.Module:
    """The model itself, out of DataParallel and DistributedDataParallel.

    Raises ConfigError for a compiled one: what torch.compile has traced runs without new hooks.
    """
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None):
            raise ConfigError(
                f"{f'module {name!r}' if name else 'the model'} is compiled, and what is compiled "
                "does not see new hooks; give the model from before torch.compile (model._orig_mod)"
            )
    return model


def find_module(model: nn.Module, path: str) -> nn.Module:
    """A module by its dotted path. Raises UnknownName with near matches."""
    modules: dict[str, nn.Module] = dict(plain(model).named_modules(remove_duplicate=False))
    if not path or path not in modules:
        raise UnknownName("site", path, (m for m in modules if m))
    return modules[path]


class _Spot(NamedTuple):
    """Where in an output or in arguments a tensor stands: no key for the thing itself."""

    key: Any
    tensor: Tensor


def tensor_of(output: Any, site: str) -> Tensor:
    """The output itself, or the first tensor of several, or the one that the site's [i] says."""
    return _spot(output, site, place_of(site).part).tensor


def _spot(output: Any, site: str, part: int | None) -> _Spot:
    if isinstance(output, Tensor) and part is None:
        return _Spot(None, output)
    tensors = [_Spot(key, value) for key, value in _entries(output) if isinstance(value, Tensor)]
    if (part or 0) >= len(tensors):
        raise DataError(
            f"site {site!r} gives {type(output).__name__}, not a tensor or something that holds "
            f"{(part or 0) + 1} or more; it holds {len(tensors)}"
        )
    return tensors[part or 0]


def _entries(output: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(output, Mapping):  # transformers' and diffusers' outputs
        return output.items()
    return enumerate(output) if isinstance(output, (tuple, list)) else ()


def _replaced(output: Any, key: Any, tensor: Tensor) -> Any:
    if key is None:
        return tensor
    if isinstance(output, tuple):
        return (*output[:key], tensor, *output[key + 1 :])
    output = output.copy() if isinstance(output, (list, dict)) else output
    output[key] = tensor
    return output


def tap(model: nn.Module, site: str, on_tensor: OnTensor) -> list[RemovableHandle]:
    """Call `on_tensor` with the site's tensor on each run of its module; remove by the handles.

    Raises UnknownName, ConfigError, or in the forward pass DataError where there is no tensor.
    """
    place = place_of(site)
    module = find_module(model, place.path)
    if place.kind == "input":
        return [_tap_input(module, site, place, on_tensor)]
    if place.kind == "update":
        return _tap_update(module, site, place, on_tensor)
    if place.kind == "heads":
        return _tap_heads(module, site, place, on_tensor)
    return [_tap_output(module, site, place, on_tensor)]


def _tap_output(module: nn.Module, site: str, place: Place, on_tensor: OnTensor) -> RemovableHandle:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        spot = _spot(output, site, place.part)
        changed = on_tensor(spot.tensor)
        return None if changed is None else _replaced(output, spot.key, changed)

    return module.register_forward_hook(hook)


def _tap_input(module: nn.Module, site: str, place: Place, on_tensor: OnTensor) -> RemovableHandle:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        where, spot = _input(args, kwargs, site, place.part)
        changed = on_tensor(spot.tensor)
        if changed is None:
            return None
        if where is args:
            return _replaced(args, spot.key, changed), kwargs
        return args, _replaced(kwargs, spot.key, changed)

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _input(args: Any, kwargs: Any, site: str, part: int | None) -> tuple[Any, _Spot]:
    """The first tensor that a module is given, by place or by name."""
    where = args if any(isinstance(arg, Tensor) for arg in args) else kwargs
    return where, _spot(where, site, part or 0)


def _tap_update(
    module: nn.Module, site: str, place: Place, on_tensor: OnTensor
) -> list[RemovableHandle]:
    entered: list[Tensor] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        # a copy: the module may work in place
        entered[:] = [_input(args, kwargs, site, None)[1].tensor.clone()]

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        spot, x = _spot(output, site, place.part), entered.pop()
        if spot.tensor.shape != x.shape:
            raise DataError(
                f"site {site!r} has no update: it turns {tuple(x.shape)} into "
                f"{tuple(spot.tensor.shape)}"
            )
        update = spot.tensor - x
        changed = on_tensor(update)
        if changed is None:
            return None
        # what changed is added, so that an unchanged update leaves the output bit for bit
        return _replaced(output, spot.key, spot.tensor + (changed - update))

    first = module.register_forward_pre_hook(before, with_kwargs=True)
    return [first, module.register_forward_hook(after)]


def _tap_heads(
    module: nn.Module, site: str, place: Place, on_tensor: OnTensor
) -> list[RemovableHandle]:
    if isinstance(module, nn.MultiheadAttention):
        return [_tap_fused_heads(module, site, on_tensor)]
    inner = dict(module.named_modules())
    found = next((inner[name] for name in PROJECTIONS if name in inner), None)
    if found is None:
        raise ConfigError(
            f"site {site!r}: {type(module).__name__} has no output projection that is known "
            f"({', '.join(PROJECTIONS)}); name its projection's input, as in "
            f"{place.path}.PROJECTION:input"
        )
    return [_tap_input(found, site, Place(place.path, None, "input"), on_tensor)]


def _tap_fused_heads(
    module: nn.MultiheadAttention, site: str, on_tensor: OnTensor
) -> RemovableHandle:
    """nn.MultiheadAttention never calls its out_proj: run again with the identity in its place."""
    width, busy = module.embed_dim, False

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        nonlocal busy
        if busy:
            return None
        weight = module.out_proj.weight
        same = {"out_proj.weight": torch.eye(width, dtype=weight.dtype, device=weight.device)}
        if module.out_proj.bias is not None:
            same["out_proj.bias"] = torch.zeros_like(module.out_proj.bias)
        busy = True
        try:
            heads = functional_call(module, same, args, kwargs)
        finally:
            busy = False
        changed = on_tensor(tensor_of(heads, site.partition(":")[0]))
        return None if changed is None else _replaced(output, 0, module.out_proj(changed))

    return module.register_forward_hook(hook, with_kwargs=True)
