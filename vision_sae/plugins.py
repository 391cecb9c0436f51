"""Find adapters, recipes and data sets by name; nothing is imported until a name is asked for.

Ours are declared in pyproject.toml in the same way as a third party's. Groups:
`vision_sae.adapters` (callables: argument -> Adapter), `vision_sae.data` (callables: split ->
data source), `vision_sae.families`, `vision_sae.explainers` (callables: argument -> Explainer) and
`vision_sae.recipes` (typer apps: commands of their own).
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vision_sae.errors import UnknownName, VisionSAEError

ADAPTERS = "vision_sae.adapters"
DATA = "vision_sae.data"
RECIPES = "vision_sae.recipes"
FAMILIES = "vision_sae.families"
EXPLAINERS = "vision_sae.explainers"


def names(group: str) -> list[str]:
    """The installed names of a group, without importing any of them."""
    return sorted({point.name for point in entry_points(group=group)})


def load(group: str, name: str) -> Any:
    """What a plugin's entry point refers to.

    Raises UnknownName when no package declares it, VisionSAEError when two packages do.
    """
    found: list[EntryPoint] = [p for p in entry_points(group=group) if p.name == name]
    if not found:
        raise UnknownName(group.removeprefix("vision_sae.").rstrip("s"), name, names(group))
    targets = sorted({p.value for p in found})
    if len(targets) > 1:
        raise VisionSAEError(f"{name!r} is claimed by several packages: {', '.join(targets)}")
    return found[0].load()
