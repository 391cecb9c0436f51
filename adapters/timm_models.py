"""Image models through timm (not `timm.py`: run as a script it would hide the library)."""

from typing import Any

from torch import nn

from vision_sae.adapters.base import ModuleAdapter
from vision_sae.errors import UnknownName, require


def wrap(model: nn.Module, *, name: str) -> ModuleAdapter:
    """A timm model that you have loaded, with the preprocessing that its config states."""
    data = require("timm.data", "timm")
    config = data.resolve_model_data_config(model)
    transform = data.create_transform(**config, is_training=False)
    prefix = int(getattr(model, "num_prefix_tokens", 0))  # type: ignore[arg-type]
    return ModuleAdapter(model.eval(), transform, name=name, prefix_tokens=prefix)


def from_name(argument: str) -> ModuleAdapter:
    """`vit_small_patch16_224` with timm's weights, `.../random` without, or `local-dir:PATH`.

    Raises UnknownName for a model that timm does not list.
    """
    timm = require("timm", "timm")
    name, _, weights = argument.partition("/") if ":" not in argument else (argument, "", "")
    known: list[str] = timm.list_models()
    if ":" not in name and name.split(".")[0] not in known:
        raise UnknownName("timm model", name, known)
    model: Any = timm.create_model(name, pretrained=weights != "random")
    return wrap(model, name=f"timm:{argument}")
