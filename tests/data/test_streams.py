"""Shards through addresses and pipes, and starting within a long local shard."""

import gzip
import io
import logging
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from vision_sae.data import ImageSource, decoded, open_data
from vision_sae.data.shard import EVERY, Shard
from vision_sae.errors import DataError

PNG = io.BytesIO()
Image.new("RGB", (4, 6), "red").save(PNG, "png")


def shard(path: Path, keys: list[str], **more: Any) -> Path:
    with webdataset.TarWriter(str(path)) as writer:
        for key in keys:
            writer.write({"__key__": key, "png": PNG.getvalue(), "cls": key} | more)
    return path


def keys(source: ImageSource, start: int = 0) -> list[str]:
    return [item.key for item in source.items(start)]


def place(path: Path, name: str) -> int:
    """Where the header of a member begins."""
    with tarfile.open(path) as archive:
        return archive.getmember(name).offset_data - 512


@pytest.fixture
def two(tmp_path: Path) -> Path:
    shard(tmp_path / "0.tar", ["a", "b", "c"])
    shard(tmp_path / "1.tar", ["d", "e"])
    for i in range(2):
        packed = gzip.compress((tmp_path / f"{i}.tar").read_bytes())
        (tmp_path / f"{i}.tar.gz").write_bytes(packed)
    return tmp_path


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address(two: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(two)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_pipe_gives_what_the_files_give(two: Path, ending: str) -> None:
    spec = f"pipe:cat {two}/{{0..1}}.{ending}"
    source, local = open_data(spec), open_data(f"{two}/{{0..1}}.tar")
    assert source.name == spec and len(source) == 5
    for start in range(7):
        assert keys(source, start) == keys(local, start)
    assert [i.about for i in source.items()] == [i.about for i in local.items()]
    images = [item.image for item in decoded(source)]
    assert [image.getpixel((0, 0)) for image in images] == [(255, 0, 0)] * 5


def test_a_file_address_is_the_file(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two)
    for spec in (f"file:{two}/0.tar", f"file://{two}/0.tar", "file:0.tar", "file://0.tar"):
        assert open_data(spec).name == str(two / "0.tar")
    assert keys(open_data(f"file:{two}/*.tar")) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_web_address_is_streamed(address: str, ending: str) -> None:
    source = open_data(f"{address}/{{0..1}}.{ending}")
    assert keys(source) == ["a", "b", "c", "d", "e"] and keys(source, 4) == ["e"]
    assert sorted(keys(source.reordered(3))) == ["a", "b", "c", "d", "e"]


def test_a_web_address_that_is_not_there(address: str) -> None:
    with pytest.raises(DataError, match=r"9\.tar is cut off or damaged after 0 images: .*exit 22"):
        open_data(f"{address}/9.tar")


def test_the_length_of_a_stream_is_counted_once(
    two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_data(f"pipe:cat {two}/0.tar")
    with caplog.at_level(logging.INFO):
        assert len(source) == len(source) == 3
    assert caplog.text.count("0.tar once, to count its images") == 1
    read = open_data(f"pipe:cat {two}/1.tar")
    caplog.clear()
    assert keys(read) == ["d", "e"] and len(read) == 2 and not caplog.text


def test_a_file_of_sizes_saves_the_count(
    two: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    (two / "sizes.json").write_text('{"0.tar": 3, "1.tar": "two", "8.tar": 1}')
    with caplog.at_level(logging.INFO):
        assert len(open_data(f"{address}/0.tar")) == 3 and not caplog.text
        assert len(open_data(f"{address}/{{0..1}}.tar")) == 5
    assert "1.tar once, to count" in caplog.text  # of it a text is said, not a number


def test_a_file_of_sizes_that_is_wrong_is_noticed(two: Path, address: str) -> None:
    (two / "sizes.json").write_text('{"0.tar": 4}')
    with pytest.raises(DataError, match="0.tar holds 3 images; sizes.json says 4"):
        keys(open_data(f"{address}/0.tar"))


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_stream_that_is_cut_off_anywhere_is_reported(two: Path, ending: str) -> None:
    whole = two / f"0.{ending}"
    size = whole.stat().st_size if ending == "tar.gz" else 6 * 1024
    for length in range(0, size, 331 if ending == "tar" else 41):
        with pytest.raises(DataError, match=r"cut off or damaged after \d images"):
            len(open_data(f"pipe:head -c {length} {whole}"))


def test_a_cut_stream_gives_its_whole_images_first(two: Path) -> None:
    found, length = [], place(two / "0.tar", "c.png") + 520
    with pytest.raises(DataError, match="damaged after 2 images, near key 'c'"):
        for row in decoded(open_data(f"pipe:head -c {length} {two}/0.tar")):
            found.append(row.key)
    assert found == ["a", "b"]


def test_a_command_that_fails_behind_whole_data_is_reported(two: Path) -> None:
    with pytest.raises(DataError, match=r"damaged after \d images.*exit 3"):
        list(open_data(f"pipe:cat {two}/0.tar; exit 3").items())  # if it is quick, at opening


def test_a_command_is_stopped_with_its_reader(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", [f"{i:02d}" for i in range(50)])
    start = time.monotonic()
    source = open_data(f"pipe:cat {path}; sleep 20")  # reads the first image
    assert next(source.items()).key == "00"
    assert time.monotonic() - start < 10


def test_a_corrupt_image_in_a_stream_is_named_and_skipped(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for key, data in (("a", PNG.getvalue()), ("b", b"junk"), ("c", PNG.getvalue())):
            writer.write({"__key__": key, "png": data})
    source = open_data(f"pipe:cat {tmp_path}/x.tar")
    errors = [row.error for row in decoded(source)]
    assert errors == [None, "b: not an image that Pillow can read", None]
    with pytest.raises(DataError, match="b: not an image"):
        list(decoded(source, strict=True))


def test_an_address_of_an_unknown_kind_says_how_to_pipe_it() -> None:
    with pytest.raises(DataError, match=r"does not open nfs3://b/0.tar .*gs, .*`pipe:aws s3 cp"):
        open_data("nfs3://b/0.tar")


def test_a_command_from_elsewhere_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for spec in (f"pipe:touch {mark}", f"shuffled:1:shuffled:2:pipe:touch {mark}"):
        with pytest.raises(DataError, match="runs a command, and was not typed by you"):
            open_data(spec, commands=False)
    assert not mark.exists()


# --- starting within a long local shard


@pytest.mark.parametrize("long", ["", "a very long name " * 8, "ü"])
def test_a_start_far_in_reads_few_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: str
) -> None:
    names = [f"{long}{i:05d}" for i in range(5 * EVERY + 7)]
    path = shard(tmp_path / "x.tar", names)
    source = open_data(str(path))
    slow = {start: keys(source)[start:] for start in (0, 1, EVERY - 1, EVERY, 3 * EVERY + 5)}
    assert len(source) == len(names)
    headers, original = [], tarfile.TarInfo.frombuf.__func__  # type: ignore[attr-defined]

    def counted(kind: Any, *arguments: Any) -> Any:
        headers.append(1)
        return original(kind, *arguments)

    monkeypatch.setattr(tarfile.TarInfo, "frombuf", classmethod(counted))
    for start, wanted in slow.items():
        headers.clear()
        rows = source.items(start)
        assert next(rows).key == wanted[0] and len(headers) < 6 * (EVERY + 2)
        assert [item.key for item in rows] == wanted[1:]
    assert keys(source, len(names)) == keys(source, 10**6) == []


def test_damage_far_in_is_counted_from_the_front(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", [f"{i:03d}" for i in range(3 * EVERY)])
    part = Shard(str(path))
    assert len(part) == 3 * EVERY
    data = bytearray(path.read_bytes())
    data[place(path, f"{2 * EVERY + 5:03d}.cls") + 150] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"after {2 * EVERY + 5} images, near"):
        list(part.rows(2 * EVERY + 2))


def test_headers_for_all_that_follows_are_not_jumped_over(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as tar:
        for i in range(2 * EVERY):
            info = tarfile.TarInfo(f"{i:03d}.png")
            info.size = len(PNG.getvalue())
            tar.addfile(info, io.BytesIO(PNG.getvalue()))
    source = open_data(str(path))
    assert len(source) == 2 * EVERY and keys(source, EVERY + 3)[0] == f"{EVERY + 3:03d}"
