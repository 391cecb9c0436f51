"""A store survives any interruption, holds what was put in, and is never overwritten unasked."""

import errno
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vision_sae import files
from vision_sae.errors import DataError, OutputExists, StoreError
from vision_sae.provenance import Provenance
from vision_sae.store import Row, Store, StoreIndex, StoreWriter

BROKEN = (2, 5, 8)  # positions of images that cannot be read; the last one ends the source
SIZE, TOKENS, WIDTH = 9, 2, 3
SHARD_BYTES = 2 * TOKENS * WIDTH * 4  # two images


def index(**changes: Any) -> StoreIndex:
    where = Provenance(model="m", fingerprint="f", site="s", tokens="all", data="d")
    plain = StoreIndex(
        provenance=where, dtype="float32", width=WIDTH, tokens_per_image=TOKENS,
        prefix_tokens=1, grid=(1, 1), source_images=SIZE,
    )  # fmt: skip
    return plain.model_copy(update=changes)


def acts_of(position: int) -> Tensor:
    return torch.arange(TOKENS * WIDTH).view(TOKENS, WIDTH) / 7 + position


def row(position: int) -> Row:
    return Row(position, f"k{position}", {"label": "é", "n": position})


def run(folder: Path, batch: int = 3, **options: Any) -> StoreIndex:
    """What extract does, from wherever the store says that it stopped."""
    writer = StoreWriter(folder, index(), shard_bytes=SHARD_BYTES, **options)
    if writer.index.complete:
        return writer.index
    for start in range(0, SIZE, batch):
        positions = range(start, min(start + batch, SIZE))
        for broken, some in groupby(positions, lambda p: p in BROKEN):
            group = list(some)
            if broken:
                for p in group:
                    writer.skip(row(p), "broken")
            else:
                writer.add(torch.stack([acts_of(p) for p in group]), [row(p) for p in group])
    return writer.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def uninterrupted() -> Iterator[dict[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
        yield contents(Path(folder))


# ---- what goes in comes out


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 4),
    width=st.integers(1, 5),
    batches=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    shard_images=st.integers(1, 12),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    gap=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_round_trip(
    tokens: int, width: int, batches: list[int], shard_images: int, dtype: str, gap: int, seed: int
) -> None:
    n = sum(batches)
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(n, tokens, width, generator=generator) * 100
    rows = [Row(i * gap, f"key/{i} ü", {"label": i, "x": [None, 0.5]}) for i in range(n)]
    job = index(tokens_per_image=tokens, width=width, dtype=dtype, source_images=None)
    stored_dtype = getattr(torch, dtype)
    with tempfile.TemporaryDirectory() as folder:
        per_shard = shard_images * tokens * width * stored_dtype.itemsize
        writer = StoreWriter(Path(folder), job, shard_bytes=per_shard)
        for part, of in zip(acts.split(batches), split(rows, batches), strict=True):
            writer.add(part, of)
        writer.finish()
        store = Store(folder)
        assert torch.equal(torch.cat(list(store.in_order(2))), acts.to(stored_dtype).float())
        assert (store.images, store.rows, store.width) == (n, n * tokens, width)
        assert store.keys == [r.key for r in rows] and store.about == [r.about for r in rows]
        assert store.positions == [r.position for r in rows]
        in_shards = Counter(r.position // shard_images for r in rows)
        assert [s.images for s in store.index.shards] == list(in_shards.values())
        del store


def split(rows: list[Row], sizes: list[int]) -> list[list[Row]]:
    waiting = iter(rows)
    return [[next(waiting) for _ in range(size)] for size in sizes]


def test_skipped_images_are_named_and_leave_gaps(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.skipped == [f"k{p}: broken" for p in BROKEN]
    assert Store(tmp_path).positions == [0, 1, 3, 4, 6, 7]


def test_what_was_added_may_be_reused_by_the_caller(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, index())
    acts = acts_of(0)[None].clone()
    writer.add(acts, [row(0)])
    acts.zero_()
    writer.finish()
    assert torch.equal(Store(tmp_path).acts([0]), acts_of(0)[None])


@pytest.mark.parametrize("shape", [(1, 3, 3), (1, 2, 4)])
def test_mixed_widths_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    writer = StoreWriter(tmp_path, index())
    with pytest.raises(DataError, match=r"'k0' gives \(\d, \d\) tokens x width .* holds \(2, 3\)"):
        writer.add(torch.zeros(shape), [row(0)])
    writer.close()


# ---- death and resumption


class Dead(BaseException):
    """The process is gone: nothing in the library may catch this."""


@contextmanager
def death_after(
    operations: int, monkeypatch: pytest.MonkeyPatch, *, half_written: bool = False
) -> Iterator[list[str]]:
    """Let so many file operations happen; the next one does not, or only as a partial file."""
    real, done = files.whole, list[str]()

    @contextmanager
    def whole(path: Path, size: int) -> Iterator[Path]:
        if len(done) == operations:
            if half_written:
                path.with_name(path.name + ".partial").write_bytes(bytes(size // 2))
            raise Dead
        done.append(path.name)
        with real(path, size) as partial:
            yield partial

    with monkeypatch.context() as patch:
        patch.setattr(files, "whole", whole)
        yield done


def operations_of_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with death_after(10**6, monkeypatch) as done:
        run(folder)
    return len(done)


@pytest.mark.parametrize("half_written", [False, True])
def test_death_at_any_file_operation_loses_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: dict[str, bytes],
    half_written: bool,
) -> None:
    total = operations_of_a_run(tmp_path / "whole", monkeypatch)
    assert total == 1 + 5 * 2 - 1 + 1  # the index; shard and sidecar of each; the end
    for operations in range(total):
        folder = tmp_path / str(operations)
        with (
            pytest.raises(Dead),
            death_after(operations, monkeypatch, half_written=half_written),
        ):
            run(folder)
        run(folder)
        assert contents(folder) == uninterrupted, f"death after {operations} operations"


def test_deaths_one_after_another_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes]
) -> None:
    deaths = 0
    while True:
        try:
            with death_after(3, monkeypatch):
                run(tmp_path)
            break
        except Dead:
            deaths += 1
    assert deaths == 4 and contents(tmp_path) == uninterrupted


def test_a_batch_size_of_another_run_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes]
) -> None:
    with pytest.raises(Dead), death_after(5, monkeypatch):
        run(tmp_path, batch=1)
    run(tmp_path, batch=4)
    assert contents(tmp_path) == uninterrupted


def test_death_while_an_old_store_is_overwritten_leaves_no_index_of_lost_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes]
) -> None:
    run(tmp_path)
    with pytest.raises(Dead), death_after(0, monkeypatch):
        run(tmp_path, overwrite=True)
    with pytest.raises(StoreError, match="is no activation store"):
        Store(tmp_path)
    run(tmp_path, overwrite=True)
    assert contents(tmp_path) == uninterrupted


def test_a_finished_store_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes]
) -> None:
    run(tmp_path)
    with death_after(0, monkeypatch):
        assert run(tmp_path).complete
    assert contents(tmp_path) == uninterrupted


def test_a_full_disk_is_said_and_leaves_earlier_shards_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes]
) -> None:
    real = files.save_file

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        real(tensors, path)
        if path.name.startswith("00001.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full)
        with pytest.raises(StoreError) as caught:
            run(tmp_path)
    message = str(caught.value)
    assert f"could not write {tmp_path / '00001.safetensors'} (" in message
    assert "No space left on device" in message and "run the same command again" in message
    assert not list(tmp_path.glob("*.partial"))
    store = Store(tmp_path, allow_partial=True)
    assert store.keys == ["k0", "k1"] and torch.equal(store.acts([1])[0], acts_of(1))
    run(tmp_path)
    assert contents(tmp_path) == uninterrupted


# ---- what is refused


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_activations_that_are_not_finite_name_the_image(tmp_path: Path, value: float) -> None:
    writer = StoreWriter(tmp_path, index())
    acts = torch.zeros(3, TOKENS, WIDTH)
    acts[1, 1, 2] = value
    with pytest.raises(DataError, match="NaN or infinity .* 1 images, first 'k1', at site 's'"):
        writer.add(acts, [row(0), row(1), row(2)])
        writer.finish()


def test_activations_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, index(dtype="float16"))
    with pytest.raises(DataError, match="infinity .* first 'k0', .* as float16"):
        writer.add(torch.full((1, TOKENS, WIDTH), 1e5), [row(0)])
        writer.finish()


def test_a_second_writer_is_locked_out(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    first = StoreWriter(tmp_path, index(), shard_bytes=SHARD_BYTES)
    with pytest.raises(StoreError, match="another process is writing the store"):
        StoreWriter(tmp_path, index(), overwrite=True)
    first.close()
    run(tmp_path)
    assert contents(tmp_path) == uninterrupted


def test_a_disk_that_is_too_small_is_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: Usage(10, 9, 1500))
    files.check_space(tmp_path, 1500)
    with pytest.raises(StoreError, match=r"would take 2.5 MB and its disk has 1.5 kB free: choose"):
        files.check_space(tmp_path, 2_500_000)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_store_without_an_image_is_refused(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, index())
    writer.skip(row(0), "broken")
    with pytest.raises(DataError, match="no readable image: all 1 were skipped"):
        writer.finish()


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float32' against 'float16'"),
        ({"width": 4}, "width 3 against 4"),
        ({"grid": None}, r"grid \(1, 1\) against None"),
        ({"model": "other"}, "model 'm' against 'other'"),
        ({"fingerprint": "g"}, "fingerprint 'f' against 'g'"),
        ({"site": "t"}, "site 's' against 't'"),
        ({"data": "e"}, "data 'd' against 'e'"),
    ],
)
def test_another_job_s_store_is_refused_by_what_differs(
    tmp_path: Path, changes: dict[str, Any], message: str, complete: bool
) -> None:
    if complete:
        run(tmp_path)
    else:
        StoreWriter(tmp_path, index())
    before = contents(tmp_path)
    where = {k: v for k, v in changes.items() if k in Provenance.model_fields}
    if where:
        changes = {"provenance": index().provenance.model_copy(update=where)}
    with pytest.raises(StoreError, match=f"another job .{message}.; .*--overwrite"):
        StoreWriter(tmp_path, index(**changes))
    assert contents(tmp_path) == before


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputExists, match="thesis.tex"):
        StoreWriter(tmp_path, index())


def test_overwrite_replaces_a_store_and_nothing_else(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    StoreWriter(tmp_path, index(dtype="float16"))
    for name in ("00007.safetensors", "00007.json", "train.safetensors", "notes.json"):
        (tmp_path / name).write_text("old")
    run(tmp_path, overwrite=True)
    kept = {"train.safetensors": b"old", "notes.json": b"old"}
    assert contents(tmp_path) == uninterrupted | kept
