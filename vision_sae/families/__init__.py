"""The sparsity families, by name; other packages add theirs by an entry point.

An entry point of the group `vision_sae.families` refers to a subclass of `Family`; its name is the
family's `kind`.
"""

from typing import Any

from vision_sae import plugins
from vision_sae.errors import ConfigError
from vision_sae.families.base import Encoded, Family
from vision_sae.families.batchtopk import BatchTopK
from vision_sae.families.gated import Gated
from vision_sae.families.jumprelu import JumpReLU
from vision_sae.families.pursuit import MatchingPursuit
from vision_sae.families.relu import PAnneal, ReLU
from vision_sae.families.topk import AbsTopK, GroupMax, TopK

OURS: dict[str, type[Family]] = {
    family.model_fields["kind"].default: family
    for family in (
        TopK, BatchTopK, AbsTopK, GroupMax, ReLU, PAnneal, JumpReLU, Gated, MatchingPursuit,
    )
}  # fmt: skip


def names() -> list[str]:
    """Our families and the installed ones."""
    return [*OURS, *(n for n in plugins.names(plugins.FAMILIES) if n not in OURS)]


def family(kind: str) -> type[Family]:
    """The config class of a family. Raises ConfigError with the names that there are."""
    if kind in OURS:
        return OURS[kind]
    if kind not in plugins.names(plugins.FAMILIES):
        raise ConfigError(f"no family {kind!r}; there are: {', '.join(names())}")
    found: Any = plugins.load(plugins.FAMILIES, kind)
    if not (isinstance(found, type) and issubclass(found, Family)):
        raise ConfigError(f"the plugin {kind!r} is no Family: {found!r}")
    return found


def parse(value: Any) -> Any:
    """A family from the data of a config; for pydantic."""
    if isinstance(value, dict) and isinstance(value.get("kind"), str):
        return family(value["kind"]).model_validate(value)
    return value


__all__ = [
    "OURS", "AbsTopK", "BatchTopK", "Encoded", "Family", "Gated", "GroupMax", "JumpReLU",
    "MatchingPursuit", "PAnneal", "ReLU", "TopK", "family", "names", "parse",
]  # fmt: skip
