"""Prompts that say which concepts they ask for: a table whose other columns are factors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from vision_sae.data.prompts import Prompt, PromptSource
from vision_sae.errors import ConfigError, DataError, UnknownName

T = TypeVar("T")
VALIDATION_SEED = 10_000_000  # of the first picture that settings are chosen on


class Labelled(NamedTuple):
    """A prompt and the value that it has in each factor: {"object": "pizza", "style": "neon"}."""

    prompt: Prompt
    labels: Mapping[str, str]


def parse(concept: str) -> tuple[str, str]:
    """ "object:pizza" as (factor, value). Raises ConfigError."""
    factor, colon, value = concept.partition(":")
    if not colon or not factor or not value:
        raise ConfigError(f"a concept is FACTOR:VALUE, as in object:pizza; got {concept!r}")
    return factor, value


def read(path: str) -> list[Labelled]:
    """The rows of a .csv, .tsv or .jsonl table; every column beside prompt and seed is a factor.

    Raises DataError for what cannot be read, and for a table without such a column.
    """
    source = PromptSource(path)
    rows = []
    for item in (source.item(i) for i in range(len(source))):
        rows.append(Labelled(item.open(), _labels(item.about, path)))
    if not rows or not any(row.labels for row in rows):
        raise DataError(
            f"{path}: concepts are columns beside prompt, seed and guidance (as object, style); "
            "there is none"
        )
    return rows


def _labels(about: Mapping[str, Any], path: str) -> dict[str, str]:
    """The factors of a row; null and blank fields are no value."""
    factors = {n: v for n, v in about.items() if n not in Prompt._fields + ("prompt",)}
    for name in factors:
        if ":" in name:
            raise DataError(
                f"{path}: the column {name!r} cannot be a factor, as concepts are FACTOR:VALUE; "
                "give it a name without a colon"
            )
    return {n: "" if v is None else str(v).strip() for n, v in factors.items()}


def concepts_of(prompts: Sequence[Labelled]) -> tuple[str, ...]:
    """Every FACTOR:VALUE that occurs, in order; empty values are none."""
    found = {f"{f}:{v}": None for row in prompts for f, v in row.labels.items() if v}
    return tuple(found)


def check(prompts: Sequence[Labelled], concept: str) -> None:
    """Raises UnknownName for a concept with no prompts, DataError for one that all have."""
    parse(concept)
    known = concepts_of(prompts)
    if concept not in known:
        raise UnknownName("prompts of concept", concept, known)
    if all(holds(row, concept) for row in prompts):
        raise DataError(
            f"all {len(prompts)} prompts ask for {concept}; others are needed to compare with"
        )


def holds(row: Labelled, concept: str) -> bool:
    factor, value = parse(concept)
    return row.labels.get(factor) == value


def few(values: Sequence[T], count: int) -> list[T]:
    """`count` of them at most, evenly from the first on."""
    return list(values[:: max(1, len(values) // count)][:count])
