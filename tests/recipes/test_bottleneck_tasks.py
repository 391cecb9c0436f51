"""Tasks of EmojiCanvas and digits: what is in which part, by key, and what goes together."""

from collections import Counter
from functools import cache
from typing import Any

import pytest

from vision_sae.assets.canvas import emoji_canvas
from vision_sae.data import open_data
from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.recipes.bottleneck.tasks import EMBEDDED, PARTS, Part, Task, open_task, spurious
from vision_sae.recipes.bottleneck.tasks.digits import DigitsSource
from vision_sae.recipes.bottleneck.tasks.part import Joined, chance

task = cache(open_task)
about = cache(emoji_canvas)


def drawings(part: Part) -> set[str]:
    return {key.partition("@")[0] for key in part.keys}


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
def test_parts_are_disjoint_and_test_is_held_out_from_what_the_model_saw(name: str) -> None:
    parts = [task(name).part(part) for part in PARTS]
    for part in parts:
        assert len(set(part.keys)) == len(part)
    seen = [drawings(part) for part in parts]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    if name.startswith("canvas"):
        assert seen[0] <= {row["key"] for row in about("train").about}
        held = {row["key"]: row["held_out"] for row in about("test").about}
        kinds = {held[drawing] for drawing in seen[2]}
        assert kinds == ({"pair"} if name == "canvas-concept" else {"pair", "concept"})


@pytest.mark.slow
def test_the_fifty_concepts_are_in_all_parts_in_other_styles() -> None:
    found = task("canvas-concept")
    assert len(found.classes) == 50
    shown: dict[str, set[tuple[str, Any]]] = {}
    for name in PARTS:
        part = found.part(name)
        assert set(part.labels) == set(found.classes)
        shown[name] = {(item.about["concept"], item.about["style"]) for item in part.items()}
    assert not (shown["train"] & shown["test"] or shown["train"] & shown["validation"])


@pytest.mark.slow
def test_labels_are_the_factors_and_every_picture_of_a_factor_is_there() -> None:
    found = task("canvas-skin-tone")
    for name in PARTS:
        toned = [row for row in about(name).about if "skin_tone" in row]
        assert drawings(found.part(name)) == {row["key"] for row in toned}
    for item in found.test.items():
        assert item.about["label"] == item.about["skin_tone"]
    assert found.prompts[0] == "dark skin tone"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["canvas-spurious-ground", "canvas-spurious-style"])
def test_the_spurious_correlation_is_exact_in_training_and_gone_in_test(name: str) -> None:
    found = task(name)
    first = {
        "canvas-spurious-ground": "on green",
        "canvas-spurious-style": "in high contrast style",
    }[name]
    expected = {"animals-nature": True, "food-drink": False, "living": True, "things": False}
    for part in (found.train, found.validation):
        for label in found.classes:
            groups = [g for g, y in zip(part.groups, part.labels, strict=True) if y == label]
            odd = sum((g.endswith(first)) != expected[label] for g in groups)
            assert abs(odd - 0.05 * len(groups)) <= 0.5
    counts = Counter(found.test.groups)
    assert len(counts) == 4
    for label in found.classes:
        assert len({n for group, n in counts.items() if group.startswith(label)}) == 1


def test_the_share_is_exact_whatever_it_is() -> None:
    styles, kinds = ("twemoji", "noto"), ("people-body", "objects")
    rows = [
        (i, f"{i}@{view}", {"style": styles[i % 2], "category": kinds[i // 2 % 2]})
        for i in range(800) for view in range(2)
    ]  # fmt: skip
    for share in (0.6, 0.8, 0.99):
        kept = spurious._correlated(rows, {"living": "twemoji", "things": "noto"}, 3, share)
        counts = Counter((row[2]["category"], row[2]["style"]) for row in kept)
        for kind, style in zip(kinds, styles, strict=True):
            mine = sum(n for (k, _), n in counts.items() if k == kind)
            assert abs(counts[kind, style] - share * mine) <= 1
        odd = spurious._odd_drawings(rows, spurious._kind, 0, share)
        assert len(odd) == 2 * round((1 - share) * 400)


@pytest.mark.slow
def test_a_training_drawing_lies_on_one_ground_and_a_test_drawing_on_both() -> None:
    found = task("canvas-spurious-ground")
    assert len(found.train) == len(drawings(found.train))
    assert len(found.test) == 2 * 2 * len(drawings(found.test))
    key, group = found.train.keys[0], found.train.groups[0]
    assert key.split("@")[1] == group.split()[-1]
    pixel = found.train.item(0).open().getpixel((0, 0))
    assert (pixel[1] > pixel[2]) == group.endswith("green")


@pytest.mark.slow
def test_groups_of_styles_say_the_picture_s_style() -> None:
    for item in task("canvas-spurious-style").test.items():
        assert item.about["style"] in spurious.STYLES
        assert ("high contrast" in item.about["group"]) == ("contrast" in item.about["style"])


@pytest.mark.slow
def test_a_part_is_data_by_its_name_and_seeds_draw_other_exceptions() -> None:
    first = task("canvas-spurious-ground").train
    part = open_data(first.name)
    assert part.name == first.name
    assert [item.key for item in part.items()] == first.keys
    item = part.item(3)
    assert item.about["group"].startswith(item.about["label"])
    other = open_task("canvas-spurious-ground?seed=1")
    assert other.train.keys != first.keys
    assert other.test.keys == task("canvas-spurious-ground").test.keys


@pytest.mark.slow
def test_digits_are_split_by_hash_and_look_like_digits() -> None:
    sizes = [len(task("digits").part(part)) for part in PARTS]
    assert sum(sizes) == len(DigitsSource())
    assert abs(sizes[0] / sum(sizes) - 0.5) < 0.05
    assert task("digits").train.item(0).open().size == (64, 64)
    assert task("digits").prompts[3] == "three"
    assert open_task("digits?seed=1").train.keys != task("digits").train.keys


def test_chance_is_even_and_depends_on_both() -> None:
    drawn = [chance(0, f"key{i}") for i in range(2000)]
    assert 0.08 < sum(x < 0.1 for x in drawn) / len(drawn) < 0.12
    assert chance(0, "a") == chance(0, "a") != chance(1, "a")


def test_joined_sources_come_one_after_the_other() -> None:
    first, second = open_task("digits").test, open_task("digits?seed=1").test
    joined = Joined([first, second])
    assert len(joined) == len(first) + len(second)
    assert joined.item(len(first) - 1).key == first.item(len(first) - 1).key
    assert joined.item(len(first)).key == second.item(0).key


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("canvas-categroy", UnknownName, "did you mean canvas-category"),
        ("canvas-spurious-ground?sead=1", UnknownName, "setting of the task.*'sead'.*seed"),
        ("canvas-spurious-ground?seed=x", ConfigError, "seed of the task .* must be a number"),
        ("canvas-spurious-ground?grounds=green", ConfigError, "two different grounds"),
        ("canvas-spurious-style?share=1", ConfigError, "share .* must be in 0.5..1"),
        ("canvas-spurious-style?styles=noto", ConfigError, "two different styles"),
        ("canvas-spurious-style?styles=noto,oil", UnknownName, "style.*'oil'.*twemoji"),
        ("cifar10", ConfigError, r"needs cifar10\?root="),
    ],
)
def test_what_is_refused(spec: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        open_task(spec)


def test_data_needs_a_part() -> None:
    with pytest.raises(UnknownName, match="digits/train"):
        open_data("task:digits")
    with pytest.raises(UnknownName, match="did you mean test"):
        open_data("task:digits/tst")


def test_parts_that_do_not_belong_together_are_refused() -> None:
    source = DigitsSource()
    part = Part("a", source, [0, 1], ["zero", "one"])
    with pytest.raises(DataError, match="2 images, 1 labels and 0 groups"):
        Part("b", source, [0, 1], ["zero"])
    with pytest.raises(DataError, match="b holds no images"):
        Part("b", source, [], [])
    with pytest.raises(DataError, match="b has the class 'two', which train has not"):
        Task("t", part, part, Part("b", source, [2], ["two"]))
