"""The pictures behind a store's rows: the right ones in order, or an error naming the change."""

from pathlib import Path

import pytest
from PIL import Image

from vision_sae.data import open_data
from vision_sae.errors import DataError
from vision_sae.extract import extract
from vision_sae.jobs import pictures
from vision_sae.model.adapter import load_adapter
from vision_sae.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of their own greys; the third is broken, so positions leave a gap."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 40 * i, 40 * i)).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Store:
    extract(load_adapter("toy"), open_data(str(folder)), "blocks.0", tmp_path / "acts")
    return Store(tmp_path / "acts")


def test_pictures_are_those_of_the_rows(store: Store) -> None:
    greys = {i: picture.getpixel((0, 0))[0] // 40 for i, picture in pictures(store, [4, 1, 2])}
    assert greys == {1: 1, 2: 3, 4: 5}
    assert list(greys) == [1, 2, 4]
    assert list(pictures(store, [])) == []


def test_a_source_that_changed_is_noticed(store: Store, folder: Path) -> None:
    (folder / "00.png").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(DataError, match="has changed: image 1 was '1', is '00'"):
        list(pictures(store, [0, 1]))


def test_images_that_are_gone_are_counted(store: Store, folder: Path) -> None:
    (folder / "5.png").unlink()
    with pytest.raises(DataError, match="has changed: 1 images are gone"):
        list(pictures(store, [0, 4]))
