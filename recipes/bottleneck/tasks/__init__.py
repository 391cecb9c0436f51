"""Tasks by name, each with train, validation and test parts that any command reads as data.

    task = open_task("canvas-category")
    vision-sae extract --data task:canvas-category/train ...

`canvas-*` and `digits` come with the library (digits with scikit-learn); the others take a `root`,
as in `cifar10?root=data`.
"""

import inspect
from typing import Any

from vision_sae.data.options import split_options
from vision_sae.errors import ConfigError, UnknownName
from vision_sae.recipes.bottleneck.tasks import canvas, spurious
from vision_sae.recipes.bottleneck.tasks.digits import digits
from vision_sae.recipes.bottleneck.tasks.named import NAMED, Builder
from vision_sae.recipes.bottleneck.tasks.part import PARTS, Part, Task

__all__ = ["EMBEDDED", "NAMED", "PARTS", "Part", "Task", "open_task", "source"]

EMBEDDED: dict[str, Builder] = {
    "canvas-category": canvas.category,
    "canvas-style": canvas.style,
    "canvas-skin-tone": canvas.skin_tone,
    "canvas-concept": canvas.concept,
    "canvas-spurious-ground": spurious.ground,
    "canvas-spurious-style": spurious.style,
    "digits": digits,
}


def open_task(spec: str) -> Task:
    """A task by name and settings: `canvas-style`, `canvas-spurious-ground?seed=3`.

    Raises UnknownName for a name or a setting that is not there, ConfigError for a setting that is
    missing or no number, and what the task's data raises.
    """
    name, settings = split_options(spec.removeprefix("task:"))
    builders = EMBEDDED | NAMED
    name = name.removesuffix("/")
    if name not in builders:
        raise UnknownName("task", name, builders)
    parameters = inspect.signature(builders[name]).parameters
    allowed = {n: p for n, p in parameters.items() if n != "name"}
    for setting in settings:
        if setting not in allowed:
            raise UnknownName(f"setting of the task {name}", setting, allowed)
    for setting, parameter in allowed.items():
        if parameter.default is parameter.empty and setting not in settings:
            raise ConfigError(f"the task {name} needs {name}?{setting}=...")
    return builders[name](**{n: _value(name, n, text, allowed[n].default) for n, text in
                             settings.items()})  # fmt: skip


def source(argument: str) -> Part:
    """The data plugin: `task:NAME/PART?settings`. Raises as `open_task` does."""
    name, query, settings = argument.partition("?")
    name, slash, part = name.partition("/")
    if not slash:
        raise UnknownName("part", part, [f"{name}/{p}" for p in PARTS])
    return open_task(name + query + settings).part(part)


def _value(task: str, setting: str, text: str, default: Any) -> Any:
    """Text as its default's kind."""
    if isinstance(default, tuple):
        return tuple(text.split(","))
    if default is inspect.Parameter.empty or isinstance(default, str):
        return text
    try:
        return type(default)(text)
    except ValueError:
        raise ConfigError(f"{setting} of the task {task} must be a number; got {text!r}") from None
