"""Image models through timm (not `timm.py`: run as a script it would hide the library)."""

from pathlib import Path
from typing import Any

from torch import nn

from vision_sae.adapters.base import ModuleAdapter
from vision_sae.adapters.loading import FAILURES, first_line
from vision_sae.data.options import split_options
from vision_sae.errors import ConfigError, DataError, UnknownName, require

# these add their class token in the last blocks only; before those, all tokens are patches
LATE_CLASS_TOKEN = ("Cait", "ConVit", "Xcit")


def wrap(model: nn.Module, *, name: str) -> ModuleAdapter:
    """A timm model that you have loaded, with the preprocessing that its config states.

    Sites are paths in it: `blocks.4` in a ViT (class, distillation and register tokens first, as
    many as timm counts), `stages.2` in a ConvNeXt, `layer3` in a ResNet, `layers.2` in a Swin.
    """
    data = require("timm.data", "timm")
    config = data.resolve_model_data_config(model, args=_size(model))
    transform = data.create_transform(**config, is_training=False)
    return ModuleAdapter(model.eval(), transform, name=name, **prefix_of(model))


def _size(model: Any) -> dict[str, Any]:
    """The image size that the model was built for, which need not be the one of its config."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return {"input_size": (model.patch_embed.proj.in_channels, *size)} if size else {}


def prefix_of(model: nn.Module) -> dict[str, int]:
    """How many tokens stand before the patches, and how many of those are registers."""
    if type(model).__name__ in LATE_CLASS_TOKEN:
        return {"prefix_tokens": 0, "registers": 0}
    weights = getattr(model, "reg_token", None)  # [1 registers width], without any None
    registers = 0 if weights is None else weights.shape[-2]
    return {"prefix_tokens": getattr(model, "num_prefix_tokens", 0), "registers": registers}


def from_name(argument: str) -> ModuleAdapter:
    """`vit_small_patch16_224` with timm's weights, `.../random` without, or `local-dir:PATH`.

    `?img_size=224` behind any of them sets the side of the images, in models that allow it.
    Raises UnknownName for a model or weights that timm does not list, ConfigError for other
    settings, DataError for a folder without a model or files that cannot be had.
    """
    timm = require("timm", "timm")
    chosen, options = split_options(argument)
    size = _img_size(options)
    if chosen.startswith("local-dir:"):
        folder = Path(chosen.removeprefix("local-dir:"))
        if not (folder / "config.json").exists():
            raise DataError(f"{folder} holds no timm model: it has no config.json")
        return _create(timm, chosen, f"timm:{argument}", pretrained=True, **size)
    name, _, weights = chosen.partition("/")
    if weights not in ("", "random"):
        raise ConfigError(f"timm:{name} takes nothing or `random` after a slash; got {weights!r}")
    _check_name(timm, name, pretrained=not weights)
    return _create(timm, name, f"timm:{argument}", pretrained=not weights, **size)


def _img_size(options: dict[str, str]) -> dict[str, int]:
    for key, value in options.items():
        if key != "img_size" or not value.isdecimal() or int(value) < 1:
            raise ConfigError(
                f"timm takes ?img_size= with a number of pixels, as 224; got {key}={value}"
            )
    return {key: int(value) for key, value in options.items()}


def _create(timm: Any, model_name: str, name: str, **settings: Any) -> ModuleAdapter:
    try:
        return wrap(timm.create_model(model_name, **settings), name=name)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        raise ConfigError(f"{model_name} takes images of any size, so no ?img_size=") from error
    except FAILURES as error:
        raise DataError(f"timm could not load {name}: {first_line(error)}") from error


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
