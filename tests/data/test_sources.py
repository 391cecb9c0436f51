"""Folders, class-per-folder trees, shards, data sets by name: what they give and refuse."""

import gzip
import io
import logging
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_iterator

from vision_sae.data import ImageSource, open_data
from vision_sae.data.rgb import to_rgb
from vision_sae.errors import DataError, UnknownName

PLAIN = st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=("C",))
STEMS = st.text(PLAIN.filter(lambda c: c not in "/."), min_size=1, max_size=8)


def encoded(colour: Any = "red", ending: str = "png", mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (4, 6), colour).save(out, ending, **options)
    return out.getvalue()


PNG = encoded()
BIG = io.BytesIO()
Image.effect_noise((64, 64), 50).save(BIG, "png")


def put(path: Path, data: bytes = PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    data = plain.getvalue()
    return put(path, gzip.compress(data) if path.name.endswith("gz") else data)


def shard(path: Path, keys: list[str]) -> Path:
    return tar(path, [(f"{key}.png", PNG) for key in keys])


def keys(source: ImageSource, start: int = 0) -> list[str]:
    return [item.key for item in source.items(start)]


# --- folders


def test_a_flat_folder_is_sorted_and_without_labels(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.webp", "notes.txt", "._a.jpg"):
        put(tmp_path / name)
    source = open_data(str(tmp_path))
    assert keys(source) == ["a", "b", "c"] and len(source) == 3
    assert [item.about for item in source.items()] == [{}, {}, {}]
    assert keys(source, 2) == ["c"] and keys(source, 9) == []


def test_a_class_per_folder_tree_gives_labels(tmp_path: Path) -> None:
    for name in ("dog/001.png", "cat/002.png", "cat/001.png", "empty/readme.txt"):
        put(tmp_path / name)
    source = open_data(str(tmp_path))
    assert keys(source) == ["cat/001", "cat/002", "dog/001"]
    assert [item.about["label"] for item in source.items()] == ["cat", "cat", "dog"]


def test_images_beside_class_folders_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "cat/001.png"), put(tmp_path / "stray.png")
    with caplog.at_level(logging.WARNING):
        assert keys(open_data(str(tmp_path))) == ["cat/001"]
    assert "1 images beside them are left out" in caplog.text


@settings(max_examples=40, deadline=None)
@given(st.sets(st.tuples(STEMS, st.sampled_from([".png", ".jpg", ".JPG", ".png.jpg"]))))
def test_folder_keys_are_unique_and_lead_back_to_the_file(names: set[tuple[str, str]]) -> None:
    files = {stem + ending for stem, ending in names} | {"always.png"}
    with tempfile.TemporaryDirectory() as folder:
        for name in files:
            put(Path(folder) / name, b"")
        found = keys(open_data(folder))
    assert len(set(found)) == len(files)
    for key, name in zip(found, sorted(files), strict=True):
        assert key in (name, name.rpartition(".")[0])


def test_the_ending_stays_where_only_it_differs(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        put(tmp_path / name)
    assert keys(open_data(str(tmp_path))) == ["a.jpg", "a.png", "b"]


def test_a_folder_without_images_names_the_endings(tmp_path: Path) -> None:
    put(tmp_path / "train/cat/001.png")
    with pytest.raises(DataError, match=r"no images in .*deeper ones are not read.*\.png.*\.tiff"):
        open_data(str(tmp_path))


# --- shards


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", "a/", "a/b.c/"]), STEMS), min_size=1, unique=True),
    st.data(),
)
def test_shard_keys_are_those_of_webdataset(names: list[tuple[str, str]], data: Any) -> None:
    wanted = [folder + stem for folder, stem in names if not stem.startswith("__")] or ["x"]
    start = data.draw(st.integers(0, len(wanted) + 1))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "x.tar")
        with webdataset.TarWriter(path) as writer:
            for i, key in enumerate(wanted):
                writer.write({"__key__": key, "png": PNG, "json": {"i": i}})
        source = open_data(path)
        assert len(source) == len(wanted)
        found = [(item.key, item.about["i"]) for item in source.items(start)]
        with open(path, "rb") as file:
            members = [member | {"__url__": path} for member in tar_file_iterator(file)]
        theirs = [row["__key__"] for row in group_by_keys(members)]
    assert found == [(key, i) for i, key in enumerate(wanted)][start:]
    assert theirs == wanted


def test_what_lies_beside_an_image_is_about_it(tmp_path: Path) -> None:
    beside = [("a.json", b'{"colour": "red"}'), ("a.cls", b"3\n"), ("a.txt", b"a red thing")]
    path = tar(tmp_path / "x.tgz", [("a.mask.png", b""), ("a.png", PNG), *beside, ("b.jpg", PNG)])
    first, second = open_data(str(path)).items()
    assert first.about == {"colour": "red", "label": "3", "caption": "a red thing"}
    assert second.about == {} and first.open().getpixel((0, 0)) == (255, 0, 0)


def test_braces_globs_and_a_start_within_the_second_shard(tmp_path: Path) -> None:
    for i in range(3):
        shard(tmp_path / f"{i:03d}.tar.gz", [f"{i}-a", f"{i}-b"])
    for pattern in ("{000..002}.tar.gz", "*.tar.gz"):
        source = open_data(f"{tmp_path}/{pattern}")
        assert len(source) == 6
        assert keys(source, 3) == keys(source)[3:] == ["1-b", "2-a", "2-b"]


def test_the_name_opens_the_same_source_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "a[1]{b,c}*"
    shard(here / "000.tar", ["x"]), put(here / "photos/y.png")
    monkeypatch.chdir(here)
    sources = [open_data(spec) for spec in ("{000..000}.tar", "*.tar", "000.tar", "photos")]
    monkeypatch.chdir("/")
    for source in sources:
        assert keys(open_data(source.name)) == keys(source)


def test_skipped_images_are_neither_read_nor_decoded(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", [("a.png", b"junk"), ("a.json", b"junk"), ("b.png", PNG)])
    assert [item.key for item in open_data(str(path)).items(1)] == ["b"]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_that_is_cut_off_anywhere_is_reported(tmp_path: Path, ending: str) -> None:
    whole = shard(tmp_path / f"x.{ending}", ["a", "b", "c"]).read_bytes()
    data_ends = len(whole) - 12 if ending == "tar.gz" else 3 * 1024
    for length in range(0, data_ends, 64 if ending == "tar" else 7):
        path = put(tmp_path / f"cut.{ending}", whole[:length])
        with pytest.raises(
            DataError, match=rf"cut\.{ending} is cut off or damaged after \d images"
        ):
            len(open_data(str(path)))


def test_a_cut_shard_gives_its_whole_images_first_and_says_where(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", ["a", "b", "c"])
    path.write_bytes(path.read_bytes()[: 2 * 1024 + 512])
    source = open_data(str(path))
    found = []
    with pytest.raises(
        DataError, match=r"x\.tar is cut off or damaged after 2 images, near key 'c'"
    ):
        for item in source.items():
            found.append(item.key)
    assert found == ["a", "b"]


def test_a_broken_header_does_not_end_a_shard_silently(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", ["a", "b", "c"])
    damaged = bytearray(path.read_bytes())
    damaged[1024 + 150] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="after 1 images, near key 'a': a broken header"):
        len(open_data(str(path)))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", b"")], r"no images in .*x\.tar; looked for \.png"),
        ([("a.png", PNG), ("a.png", PNG)], r"x\.tar is cut off or damaged .*a\.png comes twice"),
        ([("a.png", PNG), ("a.json", b"{")], r"x\.tar: the texts of 'a' cannot be read"),
    ],
)
def test_shards_that_cannot_be_used(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        list(open_data(str(tar(tmp_path / "x.tar", members))).items())


def test_missing_shards_are_named(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", ["a"])
    with pytest.raises(DataError, match=r"no shard at .*1\.tar, .*2\.tar, .*3\.tar and 2 more"):
        open_data(f"{tmp_path}/{{0..5}}.tar")
    with pytest.raises(DataError, match="braces that do not match"):
        open_data(f"{tmp_path}/{{0..5.tar")


# --- data sets by name


def test_a_data_set_by_name() -> None:
    source = open_data("emoji-canvas:validation+augmented")
    assert source.name == "emoji-canvas:validation+augmented" and len(source) == 731
    item = next(source.items(5))
    assert "key" not in item.about and item.about["style"] in item.key


def test_what_cannot_be_opened_names_what_can() -> None:
    with pytest.raises(DataError) as caught:
        open_data("emoji-canvs:test")
    for part in (
        "'emoji-canvs:test'",
        "folder of images",
        "per class",
        ".tar",
        "mean emoji-canvas?",
    ):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="'' is neither"):
        open_data("")
    with pytest.raises(UnknownName, match="no EmojiCanvas split 'tset'; did you mean test"):
        open_data("emoji-canvas:tset")


# --- decoding


def one(tmp_path: Path, data: bytes) -> Any:
    put(tmp_path / "a.png", data)
    (item,) = open_data(str(tmp_path)).items()
    return item.open()


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    half = one(tmp_path, encoded((255, 0, 0, 128), mode="RGBA"))
    assert half.mode == "RGB" and half.getpixel((0, 0)) == (255, 127, 127)
    assert one(tmp_path, encoded(0, mode="P", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_images_are_turned_as_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert one(tmp_path, encoded(ending="jpeg", exif=exif)).size == (6, 4)


def test_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    assert one(tmp_path, encoded(0x8000, mode="I;16")).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no image", "a: not an image that Pillow can read"),
        (b"", "a: not an image that Pillow can read"),
        (BIG.getvalue()[:2000], "a: .*truncated"),
        (encoded(1.5, "tiff", "F"), "a: floating-point pixels"),
    ],
)
def test_broken_images_name_their_key(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        one(tmp_path, data)


def test_a_file_that_went_away_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cat/1: .*No such file"):
        to_rgb(str(tmp_path / "gone.png"), "cat/1")
