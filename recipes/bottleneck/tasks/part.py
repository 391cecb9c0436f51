"""A task: labelled images in three parts, each an image source that any command can read."""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from vision_sae.data import Item
from vision_sae.data.indexed import IndexedSource
from vision_sae.errors import DataError, UnknownName

PARTS = ("train", "validation", "test")
Label = Callable[[Mapping[str, Any]], str]


class Part(IndexedSource):
    """Some items of a source, each with about["label"], and about["group"] where there are groups.

    Labels, groups and keys are lists beside `positions`, the items' numbers in the source.
    """

    def __init__(
        self,
        name: str,
        source: IndexedSource,
        positions: Sequence[int],
        labels: Sequence[str],
        groups: Sequence[str] = (),
        keys: Sequence[str] = (),
    ) -> None:
        self.name, self.source, self.positions = name, source, list(positions)
        self.labels, self.groups = list(labels), list(groups)
        self.keys = list(keys) or [source.item(position).key for position in self.positions]
        if not self.positions:
            raise DataError(f"{name} holds no images")
        if len(self.labels) != len(self.positions) or len(self.groups) not in (0, len(self.labels)):
            raise DataError(
                f"{name}: {len(self.positions)} images, {len(self.labels)} labels and "
                f"{len(self.groups)} groups do not belong together"
            )

    def __len__(self) -> int:
        return len(self.positions)

    def item(self, i: int) -> Item:
        key, about, opened = self.source.item(self.positions[i])
        known = {"label": self.labels[i]} | ({"group": self.groups[i]} if self.groups else {})
        return Item(key, about | known, opened)


class Joined(IndexedSource):
    """Sources one after the other; their keys must differ."""

    def __init__(self, sources: Sequence[IndexedSource]) -> None:
        self.name, self._sources = ", ".join(s.name for s in sources), list(sources)
        self._ends = list(accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def item(self, i: int) -> Item:
        which = bisect_right(self._ends, range(len(self))[i])
        return self._sources[which].item(i - self._ends[which])


@dataclass(frozen=True)
class Task:
    """What is to be told apart, and on which images.

    `words` are the classes as a text tower reads them, for zero-shot. `spurious` are words for what
    training wrongly goes together with the classes, for those who remove it by name.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    words: Mapping[str, str] = field(default_factory=dict)
    spurious: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in (self.validation, self.test):
            for label in sorted(set(part.labels) - set(self.train.labels)):
                raise DataError(f"{part.name} has the class {label!r}, which train has not")

    @cached_property
    def classes(self) -> list[str]:
        return sorted(set(self.train.labels))

    @property
    def prompts(self) -> list[str]:
        """A text for each class: its word, or its name without dashes."""
        return [self.words.get(c, c.replace("-", " ").replace("_", " ")) for c in self.classes]

    def part(self, name: str) -> Part:
        """Raises UnknownName."""
        if name not in PARTS:
            raise UnknownName("part", name, PARTS)
        found: Part = getattr(self, name)
        return found

    def counts(self) -> dict[str, dict[str, int]]:
        """How many images of each class, or of each group, are in each part."""
        parts = {name: self.part(name) for name in PARTS}
        return {name: dict(Counter(part.groups or part.labels)) for name, part in parts.items()}


def chance(seed: int, key: str) -> float:
    """A number in 0..1 that is a function of the seed and the key: how splits are drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:6]) / 2**48


def select(
    name: str,
    source: IndexedSource,
    label: Label,
    keep: Callable[[str, Mapping[str, Any]], bool] = lambda key, about: True,
    items: Iterable[Item] | None = None,
) -> Part:
    """The items that `keep` (of a key and what is known of it) lets through, with their labels.

    `items` are all of the source's, where they are known already.
    """
    kept = [
        (position, key, label(about))
        for position, (key, about, _) in enumerate(source.items() if items is None else items)
        if keep(key, about)
    ]
    positions, keys, labels = zip(*kept, strict=True) if kept else ((), (), ())
    return Part(name, source, positions, labels, keys=keys)
