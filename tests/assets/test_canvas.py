"""EmojiCanvas: what its card promises about splits, factors and repeatability."""

import gc
import tarfile
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vision_sae.assets.canvas import (
    FOLDER,
    GROUNDS,
    SPLITS,
    STYLES,
    EmojiCanvas,
    augment,
    emoji_canvas,
    source,
)
from vision_sae.data import open_data
from vision_sae.errors import DataError, UnknownName

SIZES = {"train": 10077, "validation": 731, "test": 962}
ALWAYS = {"concept", "style", "name", "emoji", "category", "subcategory", "keywords", "caption"}
SOMETIMES = {"skin_tone": 5, "gender": 3, "hour": 24, "shape": 4, "colour": 11}  # and their values

canvas = cache(emoji_canvas)


def pairs(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(row["concept"], row["style"]) for row in rows}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in canvas(split).about]


def test_splits_have_their_sizes_and_share_no_key(rows: list[dict[str, Any]]) -> None:
    assert {split: len(canvas(split)) for split in SPLITS} == SIZES
    assert len({row["key"] for row in rows}) == sum(SIZES.values())


def test_nothing_held_out_is_in_train() -> None:
    train = canvas("train").about
    concepts = {row["concept"] for row in train}
    assert not any("held_out" in row for row in train)
    for split in ("validation", "test"):
        held = canvas(split).about
        assert {row["held_out"] for row in held} == {"concept", "pair"}
        assert not pairs(held) & pairs(train)
        for row in held:
            assert (row["concept"] in concepts) == (row["held_out"] == "pair")


def test_validation_and_test_hold_out_different_things() -> None:
    validation, test = canvas("validation").about, canvas("test").about
    assert not pairs(validation) & pairs(test)
    unseen = [{r["concept"] for r in s if r["held_out"] == "concept"} for s in (validation, test)]
    assert [len(concepts) for concepts in unseen] == [28, 58] and not unseen[0] & unseen[1]


def test_every_factor_appears(rows: list[dict[str, Any]]) -> None:
    assert all(row.keys() >= ALWAYS | {"key"} for row in rows)
    assert {row["style"] for row in rows} == set(STYLES)
    assert len({row["concept"] for row in rows}) == 1562
    assert len({row["category"] for row in rows}) == 9
    for factor, values in SOMETIMES.items():
        assert len({row[factor] for row in rows if factor in row}) == values
    assert set().union(*rows) == ALWAYS | SOMETIMES.keys() | {"key", "held_out"}


def test_images_are_64_by_64() -> None:
    assert canvas("validation").rgba().shape == (731, 4, 64, 64)
    for i in range(0, SIZES["train"], 500):
        image, _ = canvas("train")[i]
        assert image.size == (64, 64) and image.mode == "RGB"


def test_strength_0_is_the_drawing_on_white() -> None:
    rgba = canvas("validation").rgba()[:8]
    drawn = augment(rgba, torch.Generator(), strength=0)
    for picture, pixels in zip(drawn, rgba, strict=True):
        drawing = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        white = Image.new("RGBA", (64, 64), "white")
        white.alpha_composite(drawing)
        theirs = np.asarray(white.convert("RGB"), np.float32).transpose(2, 0, 1)
        assert np.abs(picture.numpy() * 255 - theirs).max() < 1.01  # Pillow rounds on its way


def test_a_seed_draws_the_same_pixels_again() -> None:
    first = EmojiCanvas("validation", augmented=True, seed=3)[7][0].tobytes()
    assert EmojiCanvas("validation", augmented=True, seed=3)[7][0].tobytes() == first
    assert EmojiCanvas("validation", augmented=True, seed=4)[7][0].tobytes() != first
    assert canvas("validation")[7][0].tobytes() != first


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The data set's folder, with 60 rows of validation only."""
    with tarfile.open(next(FOLDER.glob("validation-*"))) as whole:
        infos = iter(whole)
        for number in range(2):
            with tarfile.open(tmp_path / f"validation-{number:03d}.tar.gz", "w:gz") as part:
                for info in islice(infos, 60):
                    part.addfile(info, whole.extractfile(info))
    monkeypatch.setattr("vision_sae.assets.canvas.FOLDER", tmp_path)
    yield
    gc.collect()  # webdataset leaves files open; close them while their warning is ignored


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("augmented", [False, True])
def test_the_pipeline_is_the_indexable_data_set_twice_over(small: None, augmented: bool) -> None:
    split = EmojiCanvas("validation", augmented=augmented)
    pipeline = split.pipeline()
    wanted = [(split[i][0].tobytes(), split.about[i]) for i in range(60)]
    assert len(split) == 60
    for _ in range(2):
        assert [(image.tobytes(), about) for image, about in pipeline] == wanted


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_shuffled_pipeline_draws_each_key_as_the_data_set_does(small: None) -> None:
    split = EmojiCanvas("validation", augmented=True)
    drawn = {about["key"]: image.tobytes() for image, about in split.pipeline().shuffle(50)}
    assert drawn == {split.about[i]["key"]: split[i][0].tobytes() for i in range(60)}


@pytest.mark.parametrize("argument", ["validation", "validation+augmented"])
def test_the_plugin_gives_the_data_set_as_an_image_source(argument: str) -> None:
    images = source(argument)
    split = EmojiCanvas("validation", augmented="+" in argument)
    (item, *_), (image, about) = images.items(730), split[730]
    assert item.open().tobytes() == image.tobytes()
    assert {"key": item.key} | item.about == about
    assert open_data(images.name).name == images.name == f"emoji-canvas:{argument}"


def test_no_argument_means_train() -> None:
    images = source("")
    assert images.name == "emoji-canvas:train" and len(images) == SIZES["train"]


def test_negative_and_missing_indices() -> None:
    split = EmojiCanvas("validation", augmented=True)
    assert split[-1][0].tobytes() == split[730][0].tobytes()
    with pytest.raises(IndexError):
        split[731]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UnknownName, match="no EmojiCanvas split 'valid'; did you mean validation"):
        emoji_canvas("valid")
    with pytest.raises(UnknownName, match=r"did you mean test\+augmented"):
        source("test+augmentd")


def test_a_ground_is_flat_and_the_views_of_a_drawing_differ() -> None:
    views = source("validation+green?views=2")
    assert len(views) == 2 * SIZES["validation"]
    first, second = views.item(6), views.item(7)  # type: ignore[attr-defined]
    assert (first.key.split("@")[1], second.key.split("@")[1]) == ("green.0", "green.1")
    assert first.about == second.about
    pictures = [np.array(item.open()) for item in (first, second)]
    assert not np.array_equal(*pictures)
    for pixels in pictures:
        assert pixels[0, 0].tolist() == [round(255 * part) for part in GROUNDS["green"]]
    assert open_data(views.name).item(7).key == second.key  # type: ignore[attr-defined]


def test_any_ground_is_one_of_them_the_same_every_time() -> None:
    views = source("validation+grounds")
    corners = [views.item(i).open().getpixel((0, 0)) for i in range(40)]  # type: ignore[attr-defined]
    allowed = {tuple(round(255 * part) for part in ground) for ground in GROUNDS.values()}
    assert len(set(corners)) > 4
    assert set(corners) <= allowed
    assert views.item(3).open().getpixel((0, 0)) == corners[3]  # type: ignore[attr-defined]


def test_grounds_and_views_that_there_are_not() -> None:
    with pytest.raises(UnknownName, match=r"did you mean train\+green"):
        source("train+gren")
    for argument in ("train?views=2", "train+green?views=0", "train+green?sizes=3"):
        with pytest.raises(DataError, match="views=N is the only setting"):
            source(argument)
