"""Data sets of torchvision by name: settings, labels, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from vision_sae.data import ImageSource, decoded, open_data
from vision_sae.errors import DataError, UnknownName

FAKE = "torchvision:FakeData?size=6&image_size=3,8,10&num_classes=4"


def labels(source: ImageSource, start: int = 0) -> list[Any]:
    return [item.about.get("label") for item in source.items(start)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / label).mkdir()
        for i in range(2):
            Image.new("RGB", (4, 6), colour).save(tmp_path / label / f"{i}.png")
    return tmp_path


class Added:
    """A data set with the older keyword `train`; rows are whatever `row` gives."""

    row: Callable[[int], Any]

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        assert not download
        self.root, self.size = root, 3 if train else 2

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Any:
        return type(self).row(i)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Any]], None]:
    def add(row: Callable[[int], Any]) -> None:
        kind = type("Added", (Added,), {"row": staticmethod(row)})
        sets = torchvision.datasets
        monkeypatch.setattr(sets, "Added", kind, raising=False)
        monkeypatch.setattr(sets, "__all__", (*sets.__all__, "Added"))

    return add


def grey(value: int) -> Any:
    return Image.new("L", (2, 2), value)


def test_a_data_set_without_files() -> None:
    source = open_data(FAKE)
    theirs = torchvision.datasets.FakeData(6, (3, 8, 10), 4)
    assert len(source) == 6 and source.gives == "images" and source.name == FAKE
    assert [item.key for item in source.items(4)] == ["000004", "000005"]
    for row, (image, target) in zip(decoded(source), theirs, strict=True):
        assert row.about == {"label": target} and row.image.tobytes() == image.tobytes()
    assert open_data(source.name).name == source.name


def test_class_names_are_the_labels(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    source = open_data(f"torchvision:ImageFolder?root={photos.name}")
    assert source.name == f"torchvision:ImageFolder?root={photos}"
    assert labels(source) == ["cat", "cat", "dog", "dog"] and labels(source, 3) == ["dog"]
    colours = [row.image.getpixel((0, 0)) for row in decoded(source)]
    assert colours == [(255, 0, 0)] * 2 + [(0, 0, 255)] * 2


def test_known_labels_open_no_image(photos: Path) -> None:
    source = open_data(f"torchvision:ImageFolder?root={photos}")
    (photos / "cat" / "1.png").write_bytes(b"junk")
    assert labels(source) == ["cat", "cat", "dog", "dog"]
    assert [bool(row.error) for row in decoded(source)] == [False, True, False, False]
    with pytest.raises(DataError, match="image 1 of torchvision:ImageFolder.*cannot identify"):
        list(decoded(source, strict=True))


def test_a_first_image_that_is_broken_is_one_broken_image(photos: Path) -> None:
    (photos / "cat" / "0.png").write_bytes(b"junk")
    rows = list(decoded(open_data(f"torchvision:ImageFolder?root={photos}")))
    assert [bool(row.error) for row in rows] == [True, False, False, False]
    assert [row.about for row in rows][1:] == [{"label": n} for n in ("cat", "dog", "dog")]


def test_split_is_train_where_that_is_the_keyword(added: Any) -> None:
    added(lambda i: (grey(i), i))
    assert len(open_data("torchvision:Added?root=x&split=test")) == 2
    assert len(open_data("torchvision:Added?root=x&train=false")) == 2
    assert len(open_data("torchvision:Added?root=x")) == 3
    with pytest.raises(UnknownName, match="no split 'val'; there are: test, train"):
        open_data("torchvision:Added?root=x&split=val")


@pytest.mark.parametrize(
    ("target", "about"),
    [
        (torch.tensor(3), {"label": 3}),
        ("tabby", {"label": "tabby"}),
        (torch.tensor([0, 1]), {"target": [0, 1]}),
        ({"boxes": [1.5, 2]}, {"target": {"boxes": [1.5, 2]}}),
        (grey(0), {}),
        (None, {}),
    ],
)
def test_targets_of_all_kinds(added: Any, target: Any, about: dict[str, Any]) -> None:
    added(lambda i: (grey(9), target))
    item = next(open_data("torchvision:Added?root=x").items())
    assert item.about == about and item.open().getpixel((0, 0)) == (9, 9, 9)


def test_rows_that_are_images_alone(added: Any) -> None:
    added(grey)
    assert [
        i.open().getpixel((0, 0))[0] for i in open_data("torchvision:Added?root=x").items()
    ] == [
        0,
        1,
        2,
    ]


def test_data_sets_that_give_no_images_are_refused(added: Any) -> None:
    added(lambda i: (torch.zeros(3, 2, 2), 0))
    with pytest.raises(DataError, match="torchvision:Added.root=.* gives Tensor, not PIL images"):
        open_data("torchvision:Added?root=x")
    with pytest.raises(DataError, match="FakeData.size=0 has no images"):
        open_data("torchvision:FakeData?size=0")
    with pytest.raises(DataError, match="LSUN keeps its keys in a pickle"):
        open_data("torchvision:LSUN?root=x")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("CIFAR1O?root=x", UnknownName, "no torchvision data set 'CIFAR1O'; .*mean CIFAR10 or"),
        ("", UnknownName, "no torchvision data set ''; there are: "),
        ("CIFAR10", DataError, r"CIFAR10 needs torchvision:CIFAR10\?root=\.\.\."),
        ("CIFAR10?root=gone", DataError, "CIFAR10 cannot be opened: Dataset not found"),
        ("CIFAR10?rot=x", UnknownName, "no setting 'rot'; did you mean root"),
        ("FakeData?transform=x", UnknownName, "no setting 'transform'; .*image_size"),
        ("EMNIST?root=x&split=word", DataError, "EMNIST cannot be opened: Unknown value 'word'"),
        ("FakeData?size", DataError, "'size' in 'FakeData.size' has no value"),
        ("FakeData?size=1&size=2", DataError, "'size=2' in .* comes twice"),
    ],
)
def test_names_and_settings_that_are_wrong(spec: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        open_data(f"torchvision:{spec}")


def test_settings_of_a_base_class_are_known() -> None:
    with pytest.raises(DataError, match="EMNIST cannot be opened: Dataset not found"):
        open_data("torchvision:EMNIST?root=gone&split=letters&train=false")
