"""Which images a classifier is asked about, and what it should say of each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vision_sae.errors import ConfigError, DataError, UnknownName


@dataclass(frozen=True)
class Classes:
    """`images` of a store and the class of each; small classes that were left out, with sizes."""

    images: list[int]
    y: list[str]
    left_out: dict[str, int]

    @property
    def names(self) -> list[str]:
        return sorted(set(self.y))


def classes_of(
    about: Sequence[Mapping[str, Any]],
    label: str,
    *,
    where: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    least: int = 10,
) -> Classes:
    """Images that carry `label` and the values of `where`, in classes of `least` images and more.

    Words of a label (parted by - or spaces) that are in `ignore` do not count: with man, woman and
    person ignored, woman-firefighter and firefighter are one class. Raises UnknownName, DataError.
    """
    for key in (label, *(where or {})):
        if not any(key in row for row in about):
            raise UnknownName("label", key, {key for row in about for key in row})
    asked = [
        (i, row[label])
        for i, row in enumerate(about)
        if row.get(label) is not None
        and all(str(row.get(key)) == value for key, value in (where or {}).items())
    ]
    if not asked:
        raise DataError(f"no image has a {label} and {_text(where)}")
    if any(isinstance(value, list) for _, value in asked):
        raise DataError(f"{label} has several values per image, which are no classes")
    named = [(i, _kept(str(value), ignore)) for i, value in asked]
    sizes = Counter(name for _, name in named)
    left_out = {name: size for name, size in sorted(sizes.items()) if size < least}
    kept = [(i, name) for i, name in named if name not in left_out]
    if len(sizes) - len(left_out) < 2:
        raise DataError(
            f"{len(sizes) - len(left_out)} of {len(sizes)} values of {label} have {least} images "
            "or more; a classifier needs two"
        )
    return Classes([i for i, _ in kept], [name for _, name in kept], left_out)


def read_where(pairs: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE, each. Raises ConfigError."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ConfigError(f"--where takes KEY=VALUE, as subcategory=person-role; got {wrong[0]!r}")
    return dict((pair.split("=", 1)[0], pair.split("=", 1)[1]) for pair in pairs)


def _kept(value: str, ignore: Sequence[str]) -> str:
    words = value.replace(" ", "-").split("-")
    return "-".join(word for word in words if word not in ignore) or value


def _text(where: Mapping[str, str] | None) -> str:
    return " and ".join(f"{key}={value}" for key, value in (where or {}).items()) or "a value"
