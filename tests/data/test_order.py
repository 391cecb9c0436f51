"""Seeded orders: the same items, another order, from any position, under a name that reopens it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vision_sae import plugins
from vision_sae.data import IndexedSource, Item, open_data
from vision_sae.errors import ConfigError, DataError


class Numbers(IndexedSource):
    """The numbers below `size`; counts what is opened."""

    def __init__(self, size: int) -> None:
        self.name, self.size = "numbers", size
        self.opened: list[int] = []

    def __len__(self) -> int:
        return self.size

    def item(self, i: int) -> Item:
        return Item(f"k{i}", {"i": i}, lambda: self.opened.append(i))


@given(st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 310))
def test_an_order_is_a_permutation_and_seeks(size: int, seed: int, start: int) -> None:
    source = Numbers(size)
    found = [item.key for item in source.reordered(seed).items()]
    assert sorted(found) == sorted(f"k{i}" for i in range(size))
    assert [item.key for item in source.reordered(seed).items(start)] == found[start:]
    assert len(source.reordered(seed)) == size and source.opened == []


def test_each_place_is_as_likely_as_another() -> None:
    first = Counter(next(Numbers(4).reordered(seed).items()).about["i"] for seed in range(400))
    assert all(70 < first[i] < 130 for i in range(4))


@pytest.fixture
def everything(tmp_path: Path) -> list[str]:
    """A folder, prompts and shards: specs of the three."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(9):
        Image.new("RGB", (2, 2), (i, 0, 0)).save(photos / f"{i}.png")
        with webdataset.TarWriter(str(tmp_path / f"{i}.tar")) as writer:
            for row in "ab":
                writer.write({"__key__": f"{i}{row}", "png": (photos / f"{i}.png").read_bytes()})
    (tmp_path / "p.txt").write_text("\n".join("abcdefghi"))
    return [str(photos), str(tmp_path / "p.txt"), str(tmp_path / "{0..8}.tar")]


def test_every_source_is_reordered_and_its_name_opens_it_again(everything: list[str]) -> None:
    for spec in everything:
        source = open_data(spec)
        straight = [item.key for item in source.items()]
        orders = [[i.key for i in source.reordered(seed).items()] for seed in (1, 1, 2)]
        assert orders[0] == orders[1] != orders[2] != straight
        assert sorted(orders[0]) == sorted(straight)
        again = open_data(source.reordered(1).name)
        assert again.name == source.reordered(1).name == f"shuffled:1:{source.name}"
        assert [item.key for item in again.items(3)] == orders[0][3:]
        assert len(again) == len(straight) and again.gives == source.gives
        assert [item.key for item in source.items()] == straight  # as before
        twice = open_data(again.reordered(5).name)
        assert sorted(i.key for i in twice.items()) == sorted(straight)


def test_an_item_keeps_its_key_and_its_image(everything: list[str]) -> None:
    for item in open_data(everything[0]).reordered(3).items():
        assert item.open().getpixel((0, 0)) == (int(item.key), 0, 0)


def test_rows_of_a_shard_stay_in_their_order(everything: list[str]) -> None:
    keys = [item.key for item in open_data(everything[2]).reordered(7).items()]
    assert [a[0] + "b" for a in keys[::2]] == keys[1::2] and keys != sorted(keys)


def test_what_gives_texts_says_so(everything: list[str]) -> None:
    assert [open_data(spec).gives for spec in everything] == ["images", "texts", "images"]


def test_bad_seeds_are_named(everything: list[str]) -> None:
    for spec in everything:
        with pytest.raises(ConfigError, match="seed of an order must be 0 or more; got -1"):
            open_data(spec).reordered(-1)
    for spec in ("shuffled:x:photos", "shuffled:7", "shuffled:-1:photos"):
        with pytest.raises(DataError, match="must be shuffled:SEED:DATA"):
            open_data(spec)


def test_a_plugin_without_an_order_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        name = "plain"

        def __len__(self) -> int:
            return 0

        def items(self, start: int = 0) -> Iterator[Item]:
            return iter(())

    monkeypatch.setattr(plugins, "names", lambda group: ["plain"])
    monkeypatch.setattr(plugins, "load", lambda group, name: lambda argument: Plain())
    with pytest.raises(DataError, match="plain has no other order"):
        open_data("shuffled:3:plain")
