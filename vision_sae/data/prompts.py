"""Prompts from a table (.csv, .tsv, .jsonl) or a list (.txt), for models that draw from texts."""

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TextIO

from vision_sae.data.indexed import IndexedSource
from vision_sae.data.source import Gives, Item
from vision_sae.errors import DataError

ENDINGS = (".csv", ".tsv", ".txt", ".jsonl")
COLUMNS = "the column `prompt` is required; seed, guidance and key may be there, and any others"


class Prompt(NamedTuple):
    """What to draw: the text, the seed of its noise, and its own guidance if it has one."""

    text: str
    seed: int = 0
    guidance: float | None = None


class PromptSource(IndexedSource):
    """One prompt per row of a table, or per line of a .txt file, in the file's order.

    `about` holds the prompt, the seed, the guidance where given, and every other column. Without
    them the seed is the row's number from 0, so that each prompt has its own noise, and the key
    that number with zeros before it. Raises DataError for what cannot be read.
    """

    gives: Gives = "texts"

    def __init__(self, path: str) -> None:
        self.name = os.path.abspath(os.path.expanduser(path))
        self._items = _items(self.name)

    def __len__(self) -> int:
        return len(self._items)

    def item(self, i: int) -> Item:
        return self._items[i]


def prompt_item(row: Mapping[str, Any], number: int, place: str) -> Item:
    """The item of one row; `place` is where it stands. Raises DataError for a bad field."""
    text = row.get("prompt")
    if not isinstance(text, str):
        came = "no text" if text is None else f"{text!r}"
        raise DataError(f"{place}: the prompt must be a text, not {came}")
    key, seed = _text(row.get("key")), _seed(row.get("seed"), number, place)
    guidance = _guidance(row.get("guidance"), place)
    about: dict[str, Any] = {"prompt": text, "seed": seed}
    if guidance is not None:
        about["guidance"] = guidance
    about |= {
        n: value for n, value in row.items() if n not in ("prompt", "seed", "guidance", "key")
    }
    return Item(key or f"{number:06d}", about, partial(Prompt, text, seed, guidance))


def _text(field: Any) -> str:
    return "" if field is None else str(field).strip()


def _seed(field: Any, number: int, place: str) -> int:
    try:
        seed = int(_text(field) or number)
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**63:
        raise DataError(
            f"{place}: the seed must be a whole number from 0 to 2**63 - 1, not {field!r}"
        )
    return seed


def _guidance(field: Any, place: str) -> float | None:
    try:
        guidance = float(_text(field)) if _text(field) else None
    except ValueError:
        guidance = math.nan
    if guidance is not None and not math.isfinite(guidance):
        raise DataError(f"{place}: the guidance must be a number, such as 7.5, not {field!r}")
    return guidance


def _items(path: str) -> list[Item]:
    read = {".txt": _lines, ".jsonl": _objects}.get(os.path.splitext(path)[1].lower(), _table)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            items = [prompt_item(row, i, at) for i, (at, row) in enumerate(read(file, path))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the prompts in {path} cannot be read: {error}") from error
    if not items:
        raise DataError(f"no prompts in {path}; {_wanted(path)}")
    _check_keys(items, path)
    return items


def _wanted(path: str) -> str:
    return "each line is a prompt" if path.lower().endswith(".txt") else COLUMNS


def _check_keys(items: list[Item], path: str) -> None:
    first: dict[str, int] = {}
    for number, item in enumerate(items):
        if first.setdefault(item.key, number) != number:
            raise DataError(
                f"{path}: the key {item.key!r} of row {number} is that of row {first[item.key]} "
                "(counted from 0); keys must differ, and a row without one has its number"
            )


def _lines(file: TextIO, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"{path}, line {number}", {"prompt": line.strip()}


def _objects(file: TextIO, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place} is not JSON: {error}") from error
        if not isinstance(row, dict) or "prompt" not in row:
            came = f"the names {', '.join(row)}" if isinstance(row, dict) else f"{line.strip()!r}"
            raise DataError(f"{place} must be an object; {COLUMNS}; it has {came}")
        yield place, row


def _table(file: TextIO, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = csv.reader(file, delimiter="\t" if path.lower().endswith(".tsv") else ",", strict=True)
    columns = [name.strip() for name in next(rows, [])]
    if "prompt" not in columns or len(set(columns)) < len(columns):
        came = f"its columns are {', '.join(columns)}" if columns else "it is empty"
        raise DataError(f"{path}: {came}; {COLUMNS}, each once")
    for row in rows:
        place = f"{path}, line {rows.line_num}"
        if row and len(row) != len(columns):
            raise DataError(
                f"{place}: {len(row)} fields for the {len(columns)} columns {', '.join(columns)}; "
                f"a field that holds a comma, a tab or a new line stands in quotes: {row}"
            )
        if row:  # the csv module gives an empty line as no fields
            yield place, dict(zip(columns, row, strict=True))
