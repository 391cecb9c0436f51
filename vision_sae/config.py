"""Settings are frozen data: pydantic models that refuse unknown keys and go through JSON."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vision_sae.errors import VisionSAEError


class Frozen(BaseModel):
    """Immutable settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def first_difference(one: Frozen, other: Frozen, keys: Iterable[str]) -> str | None:
    """The first of these settings that differs, in words; None when none does."""
    for key in keys:
        mine, theirs = getattr(one, key), getattr(other, key)
        if mine != theirs:
            return f"{key} {mine!r} against {theirs!r}"
    return None


def plain_error(error: ValidationError) -> str:
    """Pydantic's complaints on one line: which field, what is allowed, what came."""
    return "; ".join(_complaint(e["msg"], e["loc"], e["input"]) for e in error.errors())


def _complaint(message: str, where: tuple[int | str, ...], value: object) -> str:
    text = message.removeprefix("Value error, ")
    name = ".".join(str(part) for part in where)
    return f"{name}: {text}; got {value!r}" if name else text


class Versioned(Frozen):
    """Settings on disk; the schema number rises with every change that older code cannot read."""

    schema_number: int = 1
    older: ClassVar[tuple[int, ...]] = ()  # schemas that are read as well


Settings = TypeVar("Settings", bound=Versioned)


def read_settings(model: type[Settings], path: Path, kind: type[VisionSAEError]) -> Settings:
    """What a file holds, in the present schema.

    Raises `kind` for another schema (looked at first), unknown keys, or what is no such file.
    """
    try:
        raw = json.loads(path.read_bytes())
        known = model.model_fields["schema_number"].default
        if isinstance(raw, dict):
            _check_schema(raw.get("schema_number", known), (*model.older, known), path, kind)
            raw["schema_number"] = known
        return model.model_validate(raw)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise kind(f"{path} is not JSON: {error}") from error
    except ValidationError as error:
        raise kind(f"{path} does not hold what it should: {plain_error(error)}") from error


def _check_schema(
    found: object, read: tuple[int, ...], path: Path, kind: type[VisionSAEError]
) -> None:
    if found not in read:
        allowed = " and ".join(str(number) for number in read)
        raise kind(f"{path} has schema {found}; this version reads {allowed}")
