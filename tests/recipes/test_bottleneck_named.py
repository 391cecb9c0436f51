"""Tasks of a user's own data, on tiny folders made here."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torchvision
from PIL import Image

from vision_sae.data import open_data
from vision_sae.errors import DataError
from vision_sae.recipes.bottleneck.tasks import PARTS, open_task


def picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


class Small:
    """A torchvision data set of 300 images of three classes, or 30 in test."""

    classes = ["/a/air_port", "/b/bar", "/c/cave/indoor"]

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        self.targets = [i % 3 for i in range(300 if train else 30)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> Any:
        return Image.new("RGB", (4, 4)), self.targets[i]


class Places(Small):
    def __init__(
        self, root: str, split: str = "train-standard", small: bool = False, download: bool = False
    ) -> None:
        assert small
        super().__init__(root, train=split == "train-standard")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_tenth_of_cifar_s_train_is_validation(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torchvision.datasets, name.upper(), Small)
    found = open_task(f"{name}?root={tmp_path}")
    sizes = [len(found.part(part)) for part in PARTS]
    assert sizes[0] + sizes[1] == 300
    assert 15 < sizes[1] < 45
    assert sizes[2] == 30
    assert not set(found.train.keys) & set(found.validation.keys)
    assert open_task(f"{name}?root={tmp_path}&seed=1").train.keys != found.train.keys
    assert [i.key for i in open_data(found.validation.name).items()] == found.validation.keys


def test_places_are_named_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torchvision.datasets, "Places365", Places)
    found = open_task(f"places365?root={tmp_path}")
    assert found.prompts == ["air port", "bar", "cave indoor"]
    assert len(found.test) == 30


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for part, count in (("train", 40), ("val", 3)):
        for synset in ("n01", "n02"):
            for i in range(count):
                picture(tmp_path / part / synset / f"{i}.png")
    return tmp_path


def test_imagenet_is_two_folders(imagenet: Path) -> None:
    (imagenet / "classes.txt").write_text("n01 tench, Tinca tinca\nn02 goldfish\n")
    found = open_task(f"imagenet?root={imagenet}")
    assert found.prompts == ["tench", "goldfish"]
    assert len(found.train) + len(found.validation) == 80
    assert found.test.keys[0] == "n01/0"
    assert found.name == f"task:imagenet/?root={imagenet}&seed=0"


def test_a_folder_with_three_parts_keeps_them(imagenet: Path) -> None:
    picture(imagenet / "test" / "n01" / "9.png")
    found = open_task(f"folder?root={imagenet}")
    assert [len(found.part(part)) for part in PARTS] == [80, 6, 1]
    assert found.prompts == ["n01", "n02"]


def test_folders_that_are_not_a_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold train/ and val/ or test/"):
        open_task(f"folder?root={tmp_path}")
    for part in ("train", "test"):
        picture(tmp_path / part / "1.png")
    with pytest.raises(DataError, match="train has no sub-folder per class"):
        open_task(f"folder?root={tmp_path}")


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    paths = [f"00{c}.Black_footed_{bird}/{bird}_{i}.png" for c, bird in enumerate(("Gull", "Tern"))
             for i in range(30)]  # fmt: skip
    for path in paths:
        picture(tmp_path / "images" / path)
    listed = "".join(f"{i} {path}\n" for i, path in enumerate(paths))
    (tmp_path / "images.txt").write_text(listed)
    flags = "".join(f"{i} {int(i % 3 > 0)}\n" for i in range(60))
    (tmp_path / "train_test_split.txt").write_text(flags)
    return tmp_path


def test_cub_follows_its_own_split(cub: Path) -> None:
    found = open_task(f"cub?root={cub}")
    assert len(found.test) == 20
    assert found.test.keys[:2] == ["000.Black_footed_Gull/Gull_0", "000.Black_footed_Gull/Gull_12"]
    assert len(found.train) + len(found.validation) == 40
    assert found.prompts == ["Black footed Gull", "Black footed Tern"]


def test_cub_says_what_is_missing_and_refuses_what_is_not_listed(
    cub: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cub / "images/000.Black_footed_Gull/Gull_4.png").unlink()
    with caplog.at_level(logging.WARNING):
        open_task(f"cub?root={cub}")
    assert "1 images that" in caplog.text
    picture(cub / "images/000.Black_footed_Gull/Strange.png")
    with pytest.raises(DataError, match=r"1 images are not in .*images.txt, as .*Strange"):
        open_task(f"cub?root={cub}")
    (cub / "train_test_split.txt").write_text("1\n")
    with pytest.raises(DataError, match="line 1 has 1 columns; 2 are needed"):
        open_task(f"cub?root={cub}")


@pytest.fixture
def waterbirds(tmp_path: Path) -> Path:
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for i in range(24):
        name = f"00{i % 2}.Bird/{i}.png"
        picture(tmp_path / name)
        lines.append(f"{i},{name},{i % 2},{i % 3},{i // 6 % 2},/x/y.jpg")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    return tmp_path


def test_waterbirds_has_four_groups_and_its_own_parts(waterbirds: Path) -> None:
    found = open_task(f"waterbirds?root={waterbirds}")
    assert [len(found.part(part)) for part in PARTS] == [8, 8, 8]
    assert found.classes == ["landbird", "waterbird"]
    assert set(found.test.groups) == {
        "landbird on land", "landbird on water", "waterbird on land", "waterbird on water",
    }  # fmt: skip
    item = next(item for item in found.train.items() if item.key.endswith("/9"))
    assert (item.about["label"], item.about["group"]) == ("waterbird", "waterbird on water")
    assert "water" in found.spurious


def test_waterbirds_names_a_bad_line(waterbirds: Path) -> None:
    path = waterbirds / "metadata.csv"
    path.write_text(path.read_text().replace("\n3,001.Bird/3.png,1", "\n3,001.Bird/3.png,2"))
    with pytest.raises(DataError, match=r"metadata.csv, line 5: y is '2'"):
        open_task(f"waterbirds?root={waterbirds}")
    path.unlink()
    with pytest.raises(DataError, match=r"metadata.csv cannot be read: No such file"):
        open_task(f"waterbirds?root={waterbirds}")
