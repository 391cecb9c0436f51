"""Waterbirds-like tasks of EmojiCanvas: in training a class goes together with something else.

Train and validation: 95% of each class as expected, exactly (to the next whole picture); so a
choice on validation knows nothing of the groups. Test: of each class as many pictures with the one
as with the other.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from vision_sae.data.indexed import IndexedSource
from vision_sae.errors import ConfigError, UnknownName
from vision_sae.recipes.bottleneck.tasks.canvas import Drawn, drawn
from vision_sae.recipes.bottleneck.tasks.part import PARTS, Joined, Part, Task, chance

SHARE = 0.95
ANIMAL_OR_FOOD = {"animals-nature": "animals and nature", "food-drink": "food and drink"}
STYLES = ("fluent-high-contrast", "noto")  # the first is black and white
LIVING = ("animals-nature", "people-body", "smileys-emotion")
THINGS = ("food-drink", "objects", "travel-places", "activities")
Row = tuple[int, str, Mapping[str, Any]]  # its position in the source, the key, what is known
Facts = Mapping[str, Any]


def ground(
    seed: int = 0, share: float = SHARE, grounds: Sequence[str] = ("green", "purple")
) -> Task:
    """Animals or food; in training animals lie on the first ground and food on the second.

    In test every drawing lies on both. `seed` draws the exceptions. Raises ConfigError.
    """
    if len(grounds) != 2 or grounds[0] == grounds[1]:
        raise ConfigError(f"two different grounds are needed; got {', '.join(grounds)}")
    expected = dict(zip(ANIMAL_OR_FOOD, grounds, strict=True))
    name = _named("canvas-spurious-ground", seed, share, {"grounds": ",".join(grounds)})
    parts: dict[str, Any] = {}
    for split in PARTS:
        views = [drawn(split, colour) for colour in grounds]
        joined = Joined([v.source for v in views])
        rows = [r for r in _rows(*views) if r[2]["category"] in expected]
        if split != "test":
            odd = _odd_drawings(rows, _category, seed, share)
            rows = [r for r in rows if _ground_of(r[1]) == _laid_on(r, expected, odd)]
        parts[split] = _part(
            name.format(split), joined, rows, _category, lambda r: f"on {_ground_of(r[1])}"
        )
    return Task(name.format(""), **parts, words=ANIMAL_OR_FOOD, spurious=tuple(grounds))


def style(seed: int = 0, share: float = SHARE, styles: Sequence[str] = STYLES) -> Task:
    """Living beings or things; in training the living are in the first style, things in the second.

    `seed` draws the exceptions, and which pictures of the larger groups test leaves out. Raises
    ConfigError, UnknownName.
    """
    expected = dict(zip(("living", "things"), _two_styles(styles), strict=True))
    name = _named("canvas-spurious-style", seed, share, {"styles": ",".join(styles)})
    parts: dict[str, Any] = {}
    for split in PARTS:
        views = drawn(split)
        rows = [r for r in _rows(views) if _kind(r) and _style(r) in styles]
        test = split == "test"
        rows = _balanced(rows, seed) if test else _correlated(rows, expected, seed, share)
        parts[split] = _part(name.format(split), views.source, rows, _kind, _look)
    words = {"living": "people, faces, animals and nature",
             "things": "food, objects, travel, places and activities"}  # fmt: skip
    return Task(name.format(""), **parts, words=words, spurious=tuple(map(style_words, styles)))


def style_words(style: str) -> str:
    """A style as EmojiCanvas' captions call it."""
    from vision_sae.assets.builders.emoji_canvas import STYLE_WORDS

    return f"{STYLE_WORDS.get(style, style.replace('-', ' '))} style"


def _two_styles(styles: Sequence[str]) -> Sequence[str]:
    from vision_sae.assets.canvas import STYLES as ALL

    for one in styles:
        if one not in ALL:
            raise UnknownName("style", one, ALL)
    if len(set(styles)) != 2 or len(styles) != 2:
        raise ConfigError(f"two different styles are needed; got {', '.join(styles)}")
    return styles


def _category(row: Row) -> str:
    return str(row[2]["category"])


def _style(row: Row) -> str:
    return str(row[2]["style"])


def _kind(row: Row) -> str:
    category = _category(row)
    return "living" if category in LIVING else "things" if category in THINGS else ""


def _look(row: Row) -> str:
    return f"in {style_words(_style(row))}"


def _named(name: str, seed: int, share: float, settings: Mapping[str, str]) -> str:
    """The data spec of a part, with {} for the part."""
    if not 0.5 <= share < 1:
        raise ConfigError(f"the share that goes together must be in 0.5..1, below 1; got {share}")
    texts = {"seed": str(seed), "share": f"{share:g}", **settings}
    return f"task:{name}/{{}}?" + "&".join(f"{k}={v}" for k, v in texts.items())


def _rows(*views: Drawn) -> list[Row]:
    return [(i, item.key, item.about) for i, item in enumerate(chain(*(v.items for v in views)))]


def _part(
    name: str, source: IndexedSource, rows: Sequence[Row], label: Callable[[Row], str],
    where: Callable[[Row], str],
) -> Part:  # fmt: skip
    positions, keys, _ = zip(*rows, strict=True)
    groups = [f"{label(row)} {where(row)}" for row in rows]
    return Part(name, source, positions, [label(row) for row in rows], groups, keys)


def _drawing(row: Row) -> str:
    """The key without its views and ground."""
    return row[1].partition("@")[0]


def _ground_of(key: str) -> str:
    return key.partition("@")[2].partition(".")[0]


def _odd_drawings(
    rows: Sequence[Row], label: Callable[[Row], str], seed: int, share: float
) -> set[str]:
    """Of each class the drawings that are exceptions: the first of a seeded order."""
    odd: set[str] = set()
    for name in sorted({label(row) for row in rows}):
        mine = {_drawing(row) for row in rows if label(row) == name}
        order = sorted(mine, key=lambda drawing: chance(seed, drawing))
        odd |= set(order[: round((1 - share) * len(order))])
    return odd


def _laid_on(row: Row, expected: Mapping[str, str], odd: set[str]) -> str:
    category = _category(row)
    other = next(c for c in expected if c != category)
    return expected[other if _drawing(row) in odd else category]


def _correlated(
    rows: Sequence[Row], expected: Mapping[str, str], seed: int, share: float
) -> list[Row]:
    """All pictures that are as expected, and so many exceptions that the share is right."""
    kept = [r for r in rows if _style(r) == expected[_kind(r)]]
    for kind in expected:
        usual = {_drawing(r) for r in kept if _kind(r) == kind}
        rest = {_drawing(r) for r in rows if _kind(r) == kind} - usual
        order = sorted(rest, key=lambda drawing: chance(seed, drawing))
        odd = set(order[: round(len(usual) * (1 - share) / share)])
        kept += [r for r in rows if _drawing(r) in odd]
    return sorted(kept)


def _balanced(rows: Sequence[Row], seed: int) -> list[Row]:
    """As many drawings of each group as the smallest has."""
    groups: dict[str, set[str]] = {}
    for row in rows:
        groups.setdefault(f"{_kind(row)} {_look(row)}", set()).add(_drawing(row))
    size = min(map(len, groups.values()))
    kept: set[str] = set()
    for drawings in groups.values():
        kept |= set(sorted(drawings, key=lambda drawing: chance(seed, drawing))[:size])
    return [row for row in rows if _drawing(row) in kept]
