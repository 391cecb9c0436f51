"""Decoding ahead: order, bounds, broken images, early stops; and picking single images."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vision_sae.data import Item, decoded
from vision_sae.errors import ConfigError, DataError


class FakeSource:
    """Images whose red value is their position; counts what is asked of it."""

    name, gives = "fake", "images"

    def __init__(self, size: int, broken: tuple[int, ...] = (), cut_at: int | None = None) -> None:
        self.size, self.broken, self.cut_at = size, broken, cut_at
        self.handed_out = 0
        self.opened: list[int] = []

    def __len__(self) -> int:
        return self.size

    def items(self, start: int = 0) -> Iterator[Item]:
        for i in range(start, self.size):
            if i == self.cut_at:
                raise DataError(f"cut off at {i}")
            self.handed_out += 1
            yield Item(f"k{i}", {"i": i}, partial(self._open, i))

    def reordered(self, seed: int) -> "FakeSource":
        raise NotImplementedError

    def _open(self, i: int) -> Any:
        self.opened.append(i)
        if i in self.broken:
            raise DataError(f"k{i}: broken")
        return Image.new("RGB", (1, 1), (i, 0, 0))


def reds(images: dict[int, Any]) -> dict[int, int]:
    return {i: image.getpixel((0, 0))[0] for i, image in images.items()}


def decoding_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("decode")]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 45), st.integers(1, 4), st.integers(1, 50))
def test_every_image_in_order(size: int, start: int, workers: int, ahead: int) -> None:
    rows = list(decoded(FakeSource(size), start=start, workers=workers, ahead=ahead))
    assert [(r.position, r.key, r.about["i"]) for r in rows] == [
        (i, f"k{i}", i) for i in range(start, size)
    ]
    assert reds({r.position: r.image for r in rows}) == {i: i for i in range(start, size)}


def test_a_broken_image_is_reported_in_its_place() -> None:
    rows = list(decoded(FakeSource(5, broken=(2,))))
    assert [r.error for r in rows] == [None, None, "k2: broken", None, None]
    assert rows[2].image is None


def test_a_broken_image_raises_when_strict() -> None:
    rows = decoded(FakeSource(5, broken=(2,)), strict=True)
    assert [r.key for r in islice(rows, 2)] == ["k0", "k1"]
    with pytest.raises(DataError, match="k2: broken"):
        next(rows)
    assert decoding_threads() == []


def test_the_images_before_a_cut_come_first() -> None:
    seen = []
    with pytest.raises(DataError, match="cut off at 3"):
        for row in decoded(FakeSource(9, cut_at=3)):
            seen.append(row.position)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("stop", [lambda rows: rows.close(), lambda rows: None])
def test_looks_no_further_ahead_and_stops_its_threads(stop: Callable[[Any], None]) -> None:
    source = FakeSource(100)
    rows = decoded(source, ahead=7)
    assert next(rows).position == 0
    assert source.handed_out == 8 and decoding_threads()
    stop(rows)
    del rows
    assert decoding_threads() == []


def test_senseless_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="workers >= 1 .*workers=0"):
        next(decoded(FakeSource(3), workers=0))
