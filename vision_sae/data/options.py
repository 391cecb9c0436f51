"""Data sets with settings in their name: `CIFAR10?root=data&train=false`."""

import os
from collections.abc import Mapping
from urllib.parse import unquote

from vision_sae.errors import DataError


def split_options(spec: str) -> tuple[str, dict[str, str]]:
    """What stands before the `?`, and the settings after it; %26 is an & inside a value.

    Raises DataError for a setting without `=` and for one that comes twice.
    """
    name, _, query = spec.partition("?")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or key in options:
            why = "comes twice" if equals else "has no value"
            raise DataError(f"{part!r} in {spec!r} {why}; settings are NAME?key=value&key=value")
        options[key] = unquote(value)
    return name, options


def joined(name: str, options: Mapping[str, str]) -> str:
    """The text that `split_options` takes apart again."""
    quoted = [f"{key}={_quote(value)}" for key, value in options.items()]
    return "?".join(filter(None, [name, "&".join(quoted)]))


def _quote(value: str) -> str:
    return value.replace("%", "%25").replace("&", "%26")


def absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
