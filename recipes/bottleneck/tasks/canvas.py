"""Tasks of EmojiCanvas: test is its test split, so held-out concepts and held-out pairs alone.

Train, validation and test are those of EmojiCanvas (by key; see its README), each drawing moved and
laid on a pastel, in test twice. A test item's about["held_out"] says whether its concept is new, or
only its pair of concept and style.
"""

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from vision_sae.data import Item
from vision_sae.data.indexed import IndexedSource
from vision_sae.recipes.bottleneck.tasks.part import PARTS, Part, Task, chance, select

VIEWS = {"train": 1, "validation": 1, "test": 2}
CONCEPTS = 50


def category() -> Task:
    """The nine categories, `animals-nature` to `travel-places`."""
    words = {c: c.replace("-", " and ") for c in ("people-body", "smileys-emotion", "food-drink",
             "animals-nature", "travel-places")}  # fmt: skip
    return _of_factor("canvas-category", "category", words)


def style() -> Task:
    """The seven vendors' styles."""
    from vision_sae.assets.canvas import STYLES

    return _of_factor("canvas-style", "style", {s: f"{s.replace('-', ' ')} style" for s in STYLES})


def skin_tone() -> Task:
    """The five skin tones, of the pictures that have one."""
    tones = ("light", "medium-light", "medium", "medium-dark", "dark")
    words = {tone: f"{tone.replace('-', ' ')} skin tone" for tone in tones}
    return _of_factor("canvas-skin-tone", "skin_tone", words)


def concept() -> Task:
    """Fifty concepts that validation and test show in styles in which train does not."""
    chosen = held_out_concepts()
    parts: dict[str, Any] = {}
    for split in PARTS:
        views = drawn(split)
        parts[split] = select(
            f"task:canvas-concept/{split}", views.source, lambda about: str(about["concept"]),
            lambda key, about: about["concept"] in chosen, views.items,
        )  # fmt: skip
    return Task("canvas-concept", **parts, words=chosen)


def held_out_concepts(count: int = CONCEPTS) -> dict[str, str]:
    """Concept to name: those with most held-out pairs in both splits, ties in an order by hash."""
    from vision_sae.assets.canvas import emoji_canvas

    pairs: dict[str, Counter[str]] = {}
    names: dict[str, str] = {}
    for split in ("validation", "test"):
        rows = [row for row in emoji_canvas(split).about if row["held_out"] == "pair"]
        pairs[split] = Counter(row["concept"] for row in rows)
        names |= {row["concept"]: row["name"] for row in rows}
    both = sorted(set(pairs["validation"]) & set(pairs["test"]), key=lambda c: chance(0, c))
    both.sort(key=lambda c: pairs["validation"][c] + pairs["test"][c], reverse=True)
    return {concept: names[concept] for concept in sorted(both[:count])}


class Drawn(NamedTuple):
    source: IndexedSource
    items: tuple[Item, ...]


@lru_cache(16)
def drawn(split: str, how: str = "augmented") -> Drawn:
    """EmojiCanvas' pictures of a split, in this module's number of views; listed once."""
    from vision_sae.assets import canvas

    source: Any = canvas.source(f"{split}+{how}?views={VIEWS[split]}")
    return Drawn(source, tuple(source.items()))


def _of_factor(name: str, factor: str, words: Mapping[str, str]) -> Task:
    parts: dict[str, Any] = {
        split: _labelled(f"task:{name}/{split}", drawn(split), factor) for split in PARTS
    }
    return Task(name, **parts, words=words)


def _labelled(name: str, views: Drawn, factor: str) -> Part:
    return select(
        name, views.source, lambda about: str(about[factor]), lambda key, about: factor in about,
        views.items,
    )  # fmt: skip
