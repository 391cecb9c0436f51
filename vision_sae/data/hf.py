"""Data sets of Hugging Face: `hf:PATH?split=train&image=image`, `hf:PATH?prompt=caption`."""

import os
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from typing import Any

from vision_sae.data.indexed import IndexedSource
from vision_sae.data.options import absolute, joined, split_options
from vision_sae.data.prompts import prompt_item
from vision_sae.data.rgb import to_rgb
from vision_sae.data.source import Gives, Item
from vision_sae.errors import DataError, UnknownName, require

EXTRA = "data"
FILES = {".parquet": "parquet", ".arrow": "arrow"}
LOADING = ("split", "config", "revision")
COLUMNS = ("image", "label", "prompt", "seed", "guidance")


def open_hf(argument: str) -> IndexedSource:
    """A hub name, a local folder or a .parquet file; `split=` may stay out where there is one.

    `image=`, `label=`, `prompt=`, `seed=` and `guidance=` name columns; a prompt column makes it a
    source of texts. No code of a data set is run. Raises DataError, UnknownName.
    """
    path, options = split_options(argument)
    for name in options:
        if name not in LOADING + COLUMNS:
            raise UnknownName("setting", name, LOADING + COLUMNS)
    if "prompt" in options and "image" in options:
        raise DataError(f"hf:{argument} asks for images and for prompts; choose one column")
    local = os.path.exists(os.path.expanduser(path))
    path = absolute(path) if local else path
    data = _loaded(path, {n: options[n] for n in LOADING if n in options}, local)
    columns = {n: _column(data, options[n]) for n in COLUMNS if n in options}
    name = joined(f"hf:{path}", options)
    return HFPrompts(name, data, columns) if "prompt" in columns else HFImages(name, data, columns)


class HFImages(IndexedSource):
    """Images of one column; `about` holds the label and every other plain column.

    A class number becomes the class's name where the data set has the names.
    """

    def __init__(self, name: str, data: Any, columns: Mapping[str, str]) -> None:
        self.name = name
        image = columns.get("image") or _image_column(data, name)
        label = columns.get("label") or ("label" if "label" in data.column_names else None)
        self._images = _undecoded(data, image, name)
        self._rest = _Plain(data, {image}, {label: "label"} if label else {})

    def __len__(self) -> int:
        return len(self._images)

    def item(self, i: int) -> Item:
        key = f"{i:06d}"
        return Item(key, self._rest.row(i), partial(self._open, i, key))

    def _open(self, i: int, key: str) -> Any:
        (file,) = self._images[i].values()
        if not file or not (file["bytes"] or file["path"]):
            raise DataError(f"{key}: the image is missing")
        return to_rgb(BytesIO(file["bytes"]) if file["bytes"] else file["path"], key)


class HFPrompts(IndexedSource):
    """Prompts of one column, with the rules of vision_sae.data.prompts; keys are row numbers."""

    gives: Gives = "texts"

    def __init__(self, name: str, data: Any, columns: Mapping[str, str]) -> None:
        self.name = name
        self._rows = _Plain(data, set(), {column: field for field, column in columns.items()})

    def __len__(self) -> int:
        return len(self._rows)

    def item(self, i: int) -> Item:
        row = self._rows.row(i)
        row.pop("key", None)  # a column of a table need not be unique
        return prompt_item(row, i, f"row {i} of {self.name}")


class _Plain:
    """The columns that JSON can hold, some of them renamed; class numbers become names."""

    def __init__(self, data: Any, without: set[str], names: Mapping[str, str]) -> None:
        library = require("datasets", EXTRA)
        plain = [c for c, f in data.features.items() if c not in without and _is_plain(f, library)]
        for column in set(names) - set(plain):
            raise DataError(
                f"the column {column!r} holds {data.features[column]}, not plain values"
            )
        self._data = data.select_columns(plain)
        self._names = {column: names.get(column, column) for column in plain}
        self._classes = {
            c: f for c, f in self._data.features.items() if isinstance(f, library.ClassLabel)
        }

    def __len__(self) -> int:
        return len(self._data)

    def row(self, i: int) -> dict[str, Any]:
        if not self._names:  # without columns the library forgets the rows
            return {}
        # renamed columns last: they win over a column that has their new name already
        found = sorted(self._data[i].items(), key=lambda pair: self._names[pair[0]] != pair[0])
        return {self._names[column]: self._named(column, value) for column, value in found}

    def _named(self, column: str, value: Any) -> Any:
        feature = self._classes.get(column)
        if feature is None or value is None or value < 0 or not feature.names:
            return value
        return feature.int2str(value)


def _is_plain(feature: Any, library: Any) -> bool:
    if isinstance(feature, library.ClassLabel):
        return True
    kinds = ("string", "large_string", "bool", "int", "uint", "float")
    return isinstance(feature, library.Value) and feature.dtype.rstrip("0123456789") in kinds


def _column(data: Any, name: str) -> str:
    if name not in data.column_names:
        raise UnknownName("column", name, data.column_names)
    return name


def _image_column(data: Any, name: str) -> str:
    kind = require("datasets", EXTRA).Image
    found = [column for column, feature in data.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        columns = ", ".join(f"{column} ({feature})" for column, feature in data.features.items())
        raise DataError(
            f"{name} has {len(found)} columns of images; say which with image=COLUMN, or "
            f"prompt=COLUMN for prompts; there are: {columns}"
        )
    return str(found[0])


def _undecoded(data: Any, column: str, name: str) -> Any:
    """The column as files, so that our own decoder reads them and says which are broken."""
    feature = data.features[column]
    try:
        kind = require("datasets", EXTRA).Image(decode=False)
        return data.select_columns([column]).cast_column(column, kind)
    except Exception as error:  # pyarrow's many
        raise DataError(f"{name}: the column {column!r} holds {feature}, not images") from error


def _loaded(path: str, how: Mapping[str, str], local: bool) -> Any:
    try:
        found = _read(path, how, local)
    except Exception as error:  # the network, a split or a config that is not there, scripts, ...
        raise DataError(f"hf:{path} cannot be opened: {error}") from error
    return _choose(found, path, how.get("split"))


def _read(path: str, how: Mapping[str, str], local: bool) -> Any:
    """One data set, or a dict of them by split."""
    library = require("datasets", EXTRA)
    split, kind = how.get("split"), FILES.get(os.path.splitext(path)[1].lower())
    if local and os.path.isdir(path) and _is_saved(path):
        return library.load_from_disk(path)
    if local and kind:
        name = (split or "train").partition("[")[0]  # of `train[:50%]`
        return library.load_dataset(kind, data_files={name: path}, split=split or name)
    options = {"split": split, "revision": how.get("revision")}
    return library.load_dataset(path, how.get("config"), **options)


def _is_saved(folder: str) -> bool:
    """Whether `save_to_disk` wrote it."""
    return bool({"state.json", "dataset_dict.json"} & set(os.listdir(folder)))


def _choose(found: Any, path: str, split: str | None) -> Any:
    """The data set, or the one of a dict's that is named or alone."""
    if not isinstance(found, dict):
        own = str(found.split or "")
        if split and own and own != split and "[" not in split:
            raise UnknownName("split", split, [own])
        return found
    if split is None and len(found) != 1:
        raise DataError(f"hf:{path} has several splits; choose one with split=: {', '.join(found)}")
    name = next(iter(found)) if split is None else split
    if name not in found:
        raise UnknownName("split", name, found)
    return found[name]
