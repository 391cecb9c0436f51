"""Concepts by number, by name, or by what they are like."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.naming import UNNAMED, read_names
from vision_sae.recipes.bottleneck.concepts import Part
from vision_sae.recipes.bottleneck.labels import some_of


def names_of(parts: Sequence[Part]) -> dict[int, str]:
    """The names that are saved beside the SAEs, by the number of the concept."""
    found, first = {}, 0
    for part in parts:
        if part.sae and Path(part.sae).exists():
            for latent, name in read_names(part.sae).items():
                if name.name != UNNAMED:
                    found[first + latent] = name.name
        first += part.latents
    return found


class Finder(NamedTuple):
    """The concepts of a bottleneck; calling it finds some."""

    width: int
    names: Mapping[int, str]
    used: Sequence[int]

    def __call__(self, which: int | str | Sequence[int | str], *, many: bool = False) -> list[int]:
        """Numbers of concepts, each by its number, its name, or a part of its name.

        A whole name wins over parts. Raises UnknownName for what matches none, ConfigError for
        what matches several concepts that are in use, unless `many`.
        """
        asked = [which] if isinstance(which, (int, str)) else list(which)
        return list(dict.fromkeys(i for one in asked for i in self._one(one, many)))

    def _one(self, which: int | str, many: bool) -> list[int]:
        text = str(which).strip()
        if text.lstrip("-").isdecimal():
            number = int(text)
            if not 0 <= number < self.width:
                raise UnknownName("concept", text, [f"0 to {self.width - 1}"])
            return [number]
        found = self._named(text)
        in_use = [i for i in found if i in set(self.used)] or found
        if not found:
            raise UnknownName("concept", text, sorted({self.names[i] for i in self.used_named}))
        if len(in_use) > 1 and not many:
            listed = some_of([f"{i} ({self.names[i]})" for i in in_use])
            raise ConfigError(
                f"{text!r} matches {len(in_use)} concepts: {listed}; name one by its number, or "
                "ask for all of them (many)"
            )
        return in_use

    @property
    def used_named(self) -> list[int]:
        return [i for i in self.used if i in self.names]

    def _named(self, text: str) -> list[int]:
        low = text.lower()
        whole = [i for i, name in self.names.items() if name.lower() == low]
        return sorted(whole or [i for i, name in self.names.items() if low in name.lower()])


class Likeness(NamedTuple):
    """How near a concept is to a text."""

    concept: int
    name: str | None
    cosine: float


def like(
    query: Float[Tensor, " e"],
    directions: Float[Tensor, "s e"],
    names: Mapping[int, str],
    *,
    least: float = 0.0,
    top: int = 20,
) -> list[Likeness]:
    """Concepts whose direction in the model's text-image space is nearest to a text's embedding.

    Directions are unit vectors: the embeddings of names, or decoder directions of a site in that
    space. Raises DataError for another width.
    """
    if query.shape[0] != directions.shape[1]:
        raise DataError(f"the text has {query.shape[0]} dimensions, concepts {directions.shape[1]}")
    cosine = torch.nn.functional.normalize(directions, dim=1) @ query / query.norm()
    best = cosine.nan_to_num(-2).topk(min(top, len(cosine)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Likeness(i, names.get(i), value) for i, value in pairs if value >= least]
