"""Data sets of Hugging Face: from disk, as images and as prompts. Nothing here asks the network."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vision_sae.data import Prompt, decoded, open_data
from vision_sae.errors import DataError, UnknownName

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def table(**more: Any) -> Any:
    columns: dict[str, Any] = {
        "image": [Image.new("RGB", (4, 6), (i, 0, 0)) for i in range(4)],
        "label": [0, 1, 1, 0],
        "caption": [f"drawing {i}" for i in range(4)],
        "noise": [5, 6, 7, 8],
    } | more
    data = datasets.Dataset.from_dict(columns)
    return data.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    table().save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_images_of_a_saved_data_set(saved: Path) -> None:
    source = open_data(f"hf:{saved}")
    assert source.name == f"hf:{saved}" and source.gives == "images" and len(source) == 4
    rows = list(decoded(source, start=1))
    assert [row.image.getpixel((0, 0))[0] for row in rows] == [1, 2, 3]
    assert rows[0].key == "000001"
    assert rows[0].about == {"label": "dog", "caption": "drawing 1", "noise": 6}


def test_prompts_of_a_column(saved: Path) -> None:
    source = open_data(f"hf:{saved}?prompt=caption&seed=noise")
    assert source.gives == "texts"
    assert [item.open() for item in source.items(2)] == [
        Prompt("drawing 2", 7),
        Prompt("drawing 3", 8),
    ]
    plain = next(open_data(f"hf:{saved}?prompt=caption").items(3))
    assert plain.open() == Prompt("drawing 3", 3)
    assert plain.about == {"prompt": "drawing 3", "seed": 3, "label": "cat", "noise": 8}


def test_the_name_opens_it_again_from_anywhere(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    source = open_data("shuffled:2:hf:saved?image=image&label=noise")
    monkeypatch.chdir("/")
    again = open_data(source.name)
    assert [i.about["label"] for i in again.items()] == [i.about["label"] for i in source.items()]
    assert sorted(i.about["label"] for i in again.items()) == [5, 6, 7, 8]


def test_splits(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": table(), "test": table().select([0])})
    both.save_to_disk(str(tmp_path / "both"))
    assert len(open_data(f"hf:{tmp_path}/both?split=test")) == 1
    with pytest.raises(DataError, match="several splits; choose one with split=: train, test"):
        open_data(f"hf:{tmp_path}/both")
    with pytest.raises(UnknownName, match="no split 'tset'; did you mean test"):
        open_data(f"hf:{tmp_path}/both?split=tset")


def test_parquet_files_and_folders_of_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "train.parquet"
    table().to_parquet(str(path))
    for spec in (f"hf:{path}", f"hf:{path}?split=train", f"hf:{tmp_path}/data?split=train"):
        source = open_data(spec)
        assert [item.open().getpixel((0, 0))[0] for item in source.items()] == [0, 1, 2, 3]
        assert next(source.items()).about["label"] == "cat"
    assert len(open_data(f"hf:{path}?split=train[:50%]")) == 2
    with pytest.raises(DataError, match="cannot be opened: .*test"):
        open_data(f"hf:{tmp_path}/data?split=test")


def test_a_column_of_bytes_is_read_and_broken_images_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 6), "red").save(tmp_path / "x.png")
    files = [(tmp_path / "x.png").read_bytes(), b"junk", b""]
    datasets.Dataset.from_dict({"file": files}).save_to_disk(str(tmp_path / "raw"))
    errors = [row.error for row in decoded(open_data(f"hf:{tmp_path}/raw?image=file"))]
    assert errors[0] is None
    assert errors[1:] == [
        "000001: not an image that Pillow can read",
        "000002: the image is missing",
    ]


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("image=imge", UnknownName, "no column 'imge'; did you mean image"),
        ("prompt=text", UnknownName, "no column 'text'; there are: caption, image, label, noise"),
        ("image=noise", DataError, r"the column 'noise' holds Value.*, not images"),
        ("prompt=image", DataError, r"the column 'image' holds Image.*, not plain values"),
        ("prompt=noise", DataError, "row 0 of hf:.*: the prompt must be a text, not 5"),
        ("prompt=caption&seed=label", DataError, "row 0 .*seed must be a whole .*not 'cat'"),
        ("prompt=caption&image=image", DataError, "asks for images and for prompts; choose one"),
        ("trust_remote_code=true", UnknownName, "no setting 'trust_remote_code'; there are: "),
    ],
)
def test_what_is_wrong_is_named(saved: Path, query: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        next(open_data(f"hf:{saved}?{query}").items())


def test_which_column_is_asked_for(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "texts"))
    with pytest.raises(DataError, match="has 0 columns of images; .*prompt=COLUMN.*text"):
        open_data(f"hf:{tmp_path}/texts")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hf:.*gone.parquet cannot be opened"):
        open_data(f"hf:{tmp_path}/gone.parquet")
