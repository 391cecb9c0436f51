"""Reading a store: in order, at random, shuffled and resumable; and never a broken one."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.errors import DataError, StoreError
from vision_sae.provenance import Provenance
from vision_sae.store import MemoryStore, Row, Store, StoreIndex, StoreWriter

IMAGES, TOKENS, WIDTH = 10, 3, 2
ACTS = torch.arange(IMAGES * TOKENS * WIDTH).view(IMAGES, TOKENS, WIDTH).float()
INDEX = StoreIndex(
    provenance=Provenance(model="m", fingerprint="f", site="s", tokens="all", data="d"),
    dtype="float32", width=WIDTH, tokens_per_image=TOKENS, prefix_tokens=0, grid=None,
)  # fmt: skip


def write(folder: Path, *, finish: bool = True) -> Path:
    """Shards of 4, 4 and 2 images."""
    writer = StoreWriter(folder, INDEX, shard_bytes=4 * TOKENS * WIDTH * 4)
    writer.add(ACTS, [Row(i, f"k{i}", {"i": i}) for i in range(IMAGES)])
    if finish:
        writer.finish()
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(write(tmp_path_factory.mktemp("store")))


# ---- order


@given(st.integers(1, 20))
def test_in_order_gives_every_image_once(store: Store, images: int) -> None:
    parts = list(store.in_order(images))
    assert torch.equal(torch.cat(parts), ACTS)
    assert max(len(part) for part in parts) <= images


@given(st.lists(st.integers(0, IMAGES - 1), max_size=12))
def test_acts_gives_images_in_the_order_asked(store: Store, images: list[int]) -> None:
    assert torch.equal(store.acts(images), ACTS[images])


@pytest.mark.parametrize("image", [-1, IMAGES])
def test_acts_refuses_an_image_that_is_not_there(store: Store, image: int) -> None:
    with pytest.raises(DataError, match=f"no image {image} in .* holds 10"):
        store.acts([0, image])


def numbers(batches: Any, count: int) -> Tensor:
    """The row numbers of so many batches: with these activations, half the first value."""
    return torch.stack(list(islice(batches, count)))[:, :, 0].long() // WIDTH


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 30))
def test_a_batch_is_a_function_of_seed_and_number(
    store: Store, size: int, seed: int, start: int
) -> None:
    all_of_them = numbers(store.batches(size, seed=seed), start + 3)
    assert torch.equal(numbers(store.batches(size, seed=seed, start=start), 3), all_of_them[start:])


@given(st.integers(1, 40), st.integers(0, 100))
def test_an_epoch_has_no_row_twice(store: Store, size: int, seed: int) -> None:
    size = min(size, store.rows)
    per_epoch = store.rows // size
    rows = numbers(store.batches(size, seed=seed), 2 * per_epoch).view(2, per_epoch * size)
    for epoch in rows:
        assert len(epoch.unique()) == per_epoch * size  # all rows, but for a rest below one batch
    if store.rows % size == 0:
        assert torch.equal(rows.sort(1).values, torch.arange(store.rows).expand(2, -1))


def test_rows_are_shuffled_over_the_whole_store_and_anew_in_each_epoch(store: Store) -> None:
    first, second = numbers(store.batches(store.rows), 2)
    other = numbers(store.batches(store.rows, seed=1), 1)[0]
    in_order = torch.arange(store.rows)
    for a, b in [(first, in_order), (first, second), (first, other)]:
        assert not torch.equal(a, b)
    shards = first[:15].div(4 * TOKENS, rounding_mode="floor")
    assert set(shards.tolist()) == {0, 1, 2}


def test_whole_rows_are_gathered(store: Store) -> None:
    batch = next(store.batches(7))
    assert torch.equal(batch, ACTS.flatten(0, 1)[batch[:, 0].long() // WIDTH])


@given(st.integers(1, 50), st.integers(0, 5))
def test_a_memory_store_gives_the_same_batches(store: Store, size: int, seed: int) -> None:
    memory = MemoryStore(ACTS.flatten(0, 1))
    assert (memory.rows, memory.width) == (store.rows, store.width)
    pairs = zip(store.batches(size, seed=seed), memory.batches(size, seed=seed), strict=False)
    assert all(torch.equal(mine, theirs) for mine, theirs in islice(pairs, 3))


@given(st.integers(1, 50))
def test_a_sample_draws_without_replacement(store: Store, n: int) -> None:
    rows = store.sample(n)
    assert len(rows) == min(n, store.rows) == len(rows.unique(dim=0))


# ---- what is refused


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_flipped_bit_names_the_shard(tmp_path: Path, at: int) -> None:
    write(tmp_path)
    flip(tmp_path / "00001.safetensors", at)
    with pytest.raises(StoreError, match="00001.safetensors is corrupt .*--overwrite"):
        Store(tmp_path)


def test_a_broken_header_is_refused_even_unverified(tmp_path: Path) -> None:
    write(tmp_path)
    flip(tmp_path / "00002.safetensors", 7)
    with pytest.raises(StoreError, match="00002.safetensors is corrupt"):
        Store(tmp_path, verify=False)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / "00002.safetensors").unlink()
    with pytest.raises(StoreError, match="00002.safetensors is missing"):
        Store(tmp_path)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text('{"keys": [')])
def test_a_broken_sidecar_is_named(tmp_path: Path, damage: Any) -> None:
    damage(write(tmp_path) / "00001.json")
    store = Store(tmp_path)
    assert torch.equal(store.acts([5]), ACTS[5:6])
    with pytest.raises(StoreError, match="00001.json cannot be read"):
        _ = store.keys


def test_an_unfinished_store_is_refused_unless_asked_for(tmp_path: Path) -> None:
    write(tmp_path, finish=False)
    with pytest.raises(StoreError, match="is unfinished: 8 images .* run the same extract command"):
        Store(tmp_path)
    store = Store(tmp_path, allow_partial=True)
    assert store.images == 8 and store.keys == [f"k{i}" for i in range(8)]
    assert torch.equal(torch.cat(list(store.in_order())), ACTS[:8])


def test_a_store_without_a_shard_is_refused(tmp_path: Path) -> None:
    StoreWriter(tmp_path, INDEX)
    with pytest.raises(StoreError, match="holds no finished shard yet"):
        Store(tmp_path, allow_partial=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "index.json is not JSON"),
        ("\x00\x01", "index.json is not JSON"),
        ("[]", "index.json does not hold what it should"),
        ("{}", "provenance: Field required"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        Store(tmp_path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path) / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_number": 2}))
    with pytest.raises(StoreError, match="has schema 2; this version reads 1"):
        Store(tmp_path)


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_a_folder_without_a_store_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="is no activation store: it has no index.json"):
        Store(tmp_path / name)
