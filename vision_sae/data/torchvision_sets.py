"""Data sets of torchvision by name: `torchvision:CIFAR10?root=DIR&split=test`."""

import ast
import inspect
from collections.abc import Sequence
from typing import Any

from vision_sae.data.indexed import IndexedSource
from vision_sae.data.options import absolute, joined, split_options
from vision_sae.data.rgb import upright_rgb
from vision_sae.data.source import Item
from vision_sae.errors import DataError, UnknownName, require

EXTRA = "data"
CALLABLES = ("transform", "target_transform", "transforms", "loader", "is_valid_file")
LEFT_OUT = ("LSUN", "LSUNClass")  # they read a pickle that nothing vouches for
TARGETS = ("targets", "labels", "_labels")  # where data sets keep the targets of all images


class TorchvisionSource(IndexedSource):
    """Images and labels of one data set; `argument` is `NAME?keyword=value&...` of its constructor.

    Nothing is downloaded without `download=true`. `split=test` works as `train=false` where that is
    the keyword. about["label"] is the class's name where the data set has `classes`, else the
    target; a target that is no single value is about["target"]. Raises UnknownName, DataError.
    """

    def __init__(self, argument: str) -> None:
        name, options = split_options(argument)
        kind = _kind(name)
        options = _checked(options, _parameters(kind))
        self.name = joined(f"torchvision:{name}", options)
        self._data = _opened(name, kind, options)
        self._targets = self._known_targets(_first(self._data, self.name))

    def __len__(self) -> int:
        return len(self._data)

    def item(self, i: int) -> Item:
        """Without a list of all targets the image is read here, for it comes with its target."""
        key = f"{i:06d}"
        if self._targets is not None:
            return Item(key, self._about(self._targets[i]), lambda: _rgb(self._row(i)[0], key))
        try:
            image, *target = self._row(i)
        except DataError:
            return Item(key, {}, lambda: _rgb(self._row(i)[0], key))
        return Item(key, self._about(target[0] if target else None), lambda: _rgb(image, key))

    def _row(self, i: int) -> tuple[Any, ...]:
        try:
            row = self._data[i]
        except Exception as error:  # whatever its decoder raises
            raise DataError(f"image {i} of {self.name}: {error}") from error
        return row if isinstance(row, tuple) else (row,)

    def _known_targets(self, first: tuple[Any, ...]) -> Sequence[Any] | None:
        """The data set's own list, where it agrees with its first row."""
        for name in TARGETS:
            known = getattr(self._data, name, None)
            if known is not None and len(known) == len(self) and len(first) > 1:
                same: bool = self._about(known[0]) == self._about(first[1])
                return known if same else None
        return None

    def _about(self, target: Any) -> dict[str, Any]:
        value = target.tolist() if hasattr(target, "tolist") else target  # tensors and numpy
        classes = getattr(self._data, "classes", None)
        if isinstance(value, int) and classes is not None and 0 <= value < len(classes):
            return {"label": str(classes[value])}
        if isinstance(value, int | float | str):
            return {"label": value}
        return {"target": value} if _plain(value) and value else {}


def _plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(v) for key, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, int | float | str)


def _rgb(image: Any, key: str) -> Any:
    try:
        return upright_rgb(image)
    except Exception as error:  # a lazily read file can still be broken
        raise DataError(f"{key}: {error or type(error).__name__}") from error


def _kind(name: str) -> Any:
    library = require("torchvision.datasets", EXTRA)
    kinds = {n: k for n in library.__all__ if inspect.isclass(k := getattr(library, n))}
    if name in LEFT_OUT:
        raise DataError(f"torchvision's {name} keeps its keys in a pickle, which is not read here")
    if name not in kinds:
        raise UnknownName("torchvision data set", name, set(kinds) - set(LEFT_OUT))
    return kinds[name]


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """What the constructor takes as text; a `**kwargs` means its base's constructor too."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        own = (
            inspect.signature(base.__init__).parameters.values() if "__init__" in vars(base) else []
        )
        for p in own:
            if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self":
                found.setdefault(p.name, p)
        if own and not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return {n: p for n, p in found.items() if n not in CALLABLES and not n.startswith("_")}


def _checked(options: dict[str, str], parameters: dict[str, inspect.Parameter]) -> dict[str, str]:
    """Checked, with an absolute root, and `split` as the `train` of older data sets."""
    options = dict(options)
    if "split" in options and "split" not in parameters and "train" in parameters:
        options["train"] = _is_train(options.pop("split"))
    for name in options:
        if name not in parameters:
            raise UnknownName("setting", name, parameters)
    if "root" in options:
        options["root"] = absolute(options["root"])
    return options


def _is_train(split: str) -> str:
    if split not in ("train", "test"):
        raise UnknownName("split", split, ("train", "test"))
    return str(split == "train").lower()


def _opened(name: str, kind: Any, options: dict[str, str]) -> Any:
    parameters = _parameters(kind)
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
    if missing:
        needed = "&".join(f"{n}=..." for n in missing)
        raise DataError(f"torchvision's {name} needs torchvision:{name}?{needed}")
    values = {n: _value(text, parameters[n]) for n, text in options.items()}
    if "download" in parameters:
        values.setdefault("download", False)
    try:
        return kind(**values)
    except Exception as error:  # files missing, a split that is not there, a library missing, ...
        raise DataError(f"torchvision's {name} cannot be opened: {error}") from error


def _value(text: str, parameter: inspect.Parameter) -> Any:
    """Text where the constructor wants text; else what Python would read: false, 3, (3, 32, 32)."""
    if isinstance(parameter.default, str) or parameter.default is parameter.empty:
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _first(data: Any, name: str) -> tuple[Any, ...]:
    """The first row, unless it is broken. Raises DataError when there is none, or no image."""
    if not len(data):
        raise DataError(f"{name} has no images")
    try:
        row = data[0]
    except Exception:  # one broken image is counted where images are read
        return ()
    row = row if isinstance(row, tuple) else (row,)
    if not isinstance(row[0], require("PIL.Image", "images").Image):
        came = type(row[0]).__name__
        raise DataError(f"{name} gives {came}, not PIL images; still images are needed")
    return row
