"""Image models through timm (not `timm.py`: run as a script it would hide the library)."""

from pathlib import Path
from typing import Any

from torch import nn

from vision_sae.adapters.base import ModuleAdapter
from vision_sae.errors import ConfigError, DataError, UnknownName, require


def wrap(model: nn.Module, *, name: str) -> ModuleAdapter:
    """A timm model that you have loaded, with the preprocessing that its config states."""
    data = require("timm.data", "timm")
    config = data.resolve_model_data_config(model)
    transform = data.create_transform(**config, is_training=False)
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    return ModuleAdapter(model.eval(), transform, name=name, prefix_tokens=prefix)


def from_name(argument: str) -> ModuleAdapter:
    """`vit_small_patch16_224` with timm's weights, `.../random` without, or `local-dir:PATH`.

    Raises UnknownName for a model or weights that timm does not list, ConfigError for anything but
    `random` after the slash, DataError for a folder without a model.
    """
    timm = require("timm", "timm")
    if argument.startswith("local-dir:"):
        folder = Path(argument.removeprefix("local-dir:"))
        if not (folder / "config.json").exists():
            raise DataError(f"{folder} holds no timm model: it has no config.json")
        return wrap(timm.create_model(argument, pretrained=True), name=f"timm:{argument}")
    name, _, weights = argument.partition("/")
    if weights not in ("", "random"):
        raise ConfigError(f"timm:{name} takes nothing or `random` after a slash; got {weights!r}")
    _check_name(timm, name, pretrained=not weights)
    return wrap(timm.create_model(name, pretrained=not weights), name=f"timm:{argument}")


def _check_name(timm: Any, name: str, *, pretrained: bool) -> None:
    architecture, _, tag = name.partition(".")
    known: list[str] = timm.list_models()
    if architecture not in known:
        raise UnknownName("timm model", name, known)
    weights: list[str] = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in weights:
        raise UnknownName("timm weights", name, weights)
    if pretrained and not weights:
        raise ConfigError(f"timm has no weights for {name}; for random ones, timm:{name}/random")
