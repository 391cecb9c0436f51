"""Reading a store: in order, at random, shuffled and resumable; and never a broken one."""

import hashlib
import json
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.errors import DataError, StoreError, UnknownName
from vision_sae.provenance import Half, Provenance
from vision_sae.store import MemoryStore, Row, Store, StoreIndex, StoreWriter, mapped
from vision_sae.store.index import DTYPES
from vision_sae.store.order import shuffled

IMAGES, TOKENS, WIDTH = 10, 3, 2
ACTS = torch.arange(IMAGES * TOKENS * WIDTH).view(IMAGES, TOKENS, WIDTH).float()
INDEX = StoreIndex(
    provenance=Provenance(model="m", fingerprint="f", site="s", tokens="all", data="d"),
    dtype="float32", width=WIDTH, tokens_per_image=TOKENS, prefix_tokens=0, grid=None,
)  # fmt: skip


def write(
    folder: Path, index: StoreIndex = INDEX, *, acts: Tensor = ACTS, finish: bool = True
) -> Path:
    """Shards of 4, 4 and 2 images."""
    image = acts[0].numel() * DTYPES[index.dtype].itemsize
    writer = StoreWriter(folder, index, shard_bytes=4 * image)
    images = IMAGES if finish else 8
    writer.add(acts[:images], [Row(i, f"k{i}", {"i": i}) for i in range(images)])
    if finish:
        writer.finish()
    else:
        writer.flush()
        writer.close()
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


@given(st.lists(st.integers(0, IMAGES * TOKENS - 1), max_size=50))
def test_take_gives_rows_in_the_order_asked(store: Store, rows: list[int]) -> None:
    wanted = ACTS.flatten(0, 1)[rows]
    assert torch.equal(store.take(rows), wanted)
    assert torch.equal(store.take(torch.tensor(rows, dtype=torch.int64)), wanted)


@pytest.mark.parametrize("row", [-1, IMAGES * TOKENS])
def test_take_refuses_a_row_that_is_not_there(store: Store, row: int) -> None:
    with pytest.raises(DataError, match=f"no row {row} in .* holds 30"):
        store.take([0, row])


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


def test_locate_says_where_a_row_came_from(store: Store) -> None:
    for batch, rows in enumerate(numbers(store.batches(7, seed=5), 6)):
        for row, number in enumerate(rows.tolist()):
            image, token = divmod(number, TOKENS)
            place = (
                f"row {number} (shard 0000{image // 4}, image {image} 'k{image}', token {token})"
            )
            assert store.locate(7, 5, batch, row) == place


def test_batches_are_read_ahead_by_a_thread_that_ends_with_them(store: Store) -> None:
    batches = store.batches(4, seed=3)
    seen = [next(batches) for _ in range(3)]
    assert [t.name for t in threading.enumerate()].count("prefetch") == 1
    del batches
    assert "prefetch" not in [t.name for t in threading.enumerate()]
    order = shuffled(store.rows, 4, seed=3, start=0)
    assert all(torch.equal(batch, store.take(next(order))) for batch in seen)


def test_a_sample_is_the_first_batch(store: Store) -> None:
    assert torch.equal(store.sample(9, seed=2), next(store.batches(9, seed=2)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_as_float32(tmp_path: Path, dtype: str) -> None:
    write(tmp_path, INDEX.model_copy(update={"dtype": dtype}))
    store = Store(tmp_path)
    for rows in (store.take(range(30)), store.acts(range(10)).flatten(0, 1)):
        assert rows.dtype == torch.float32 and torch.equal(rows, ACTS.flatten(0, 1))


# ---- one denoising step

STEPS = (900, 500, 20)
CALLS = INDEX.provenance.model_copy(update={"timesteps": STEPS, "half": "both"})
SLOTS = 2 * len(STEPS)  # two halves of guidance at each step


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Ten images of 3 steps x 2 halves x 3 positions; a row holds its own number, twice."""
    index = INDEX.model_copy(update={"provenance": CALLS, "tokens_per_image": SLOTS * TOKENS})
    rows = torch.arange(IMAGES * SLOTS * TOKENS).view(IMAGES, -1, 1).expand(-1, -1, WIDTH).float()
    return Store(write(tmp_path_factory.mktemp("steps"), index, acts=rows))


@pytest.mark.parametrize("timestep", STEPS)
def test_a_step_s_view_reads_that_step_s_rows(steps: Store, timestep: int) -> None:
    view, i = steps.at(timestep), STEPS.index(timestep)
    whole = torch.cat(list(steps.in_order())).view(IMAGES, len(STEPS), 2 * TOKENS, WIDTH)
    wanted = whole[:, i]
    rows = wanted.flatten(0, 1)
    assert (view.rows, view.width, view.images) == (60, WIDTH, IMAGES) and view.keys == steps.keys
    assert torch.equal(torch.cat(list(view.in_order(3))), wanted)
    assert torch.equal(view.acts([7, 2]), wanted[[7, 2]])
    assert torch.equal(view.take(range(60)), rows)
    order = shuffled(60, 7, seed=1, start=4)
    assert torch.equal(next(view.batches(7, seed=1, start=4)), rows[next(order)])
    assert set(view.sample(60)[:, 0].tolist()) == set(rows[:, 0].tolist())


def test_a_step_s_view_says_what_it_is_and_the_store_stays_whole(steps: Store) -> None:
    view = steps.at(500)
    assert view.index.tokens_per_image == 2 * TOKENS
    assert view.index.provenance == CALLS.model_copy(update={"timesteps": (500,)})
    assert torch.equal(view.at(500).take(range(60)), view.take(range(60)))
    assert steps.index.provenance.timesteps == STEPS and steps.rows == 180
    row = view.sample(1)[0, 0].long()
    image, token = divmod(int(row) - 2 * TOKENS, SLOTS * TOKENS)
    assert f"image {image} 'k{image}', token {token})" in view.locate(1, 0, 0, 0)


def test_a_half_of_a_step(steps: Store) -> None:
    whole = torch.cat(list(steps.in_order())).view(IMAGES, len(STEPS), 2, TOKENS, WIDTH)
    for i, half in enumerate(get_args(Half)[:2]):
        view = steps.at(500, half)
        assert torch.equal(view.acts(range(IMAGES)), whole[:, 1, i])
        where = view.index.provenance
        assert (where.timesteps, where.half, view.rows) == ((500,), half, IMAGES * TOKENS)
        assert torch.equal(view.at(500).take([4]), view.take([4]))
    with pytest.raises(DataError, match="no half 'uncond' in .*, which holds 'cond'"):
        steps.at(500, "cond").at(500, "uncond")


def test_a_step_that_was_not_kept_is_refused(store: Store, steps: Store) -> None:
    with pytest.raises(DataError, match="no timestep 1 in .*, which holds 900, 500, 20"):
        steps.at(1)
    with pytest.raises(DataError, match="no timestep 20 in .*, which holds 500$"):
        steps.at(500).at(20)
    with pytest.raises(DataError, match="no timestep 1 in .*, which holds no steps"):
        store.at(1)


# ---- several sites


@pytest.fixture
def two_sites(tmp_path: Path) -> Path:
    for name in ("a.0", "b"):
        write(tmp_path / name)
    (tmp_path / "sites.json").write_text('{"sites": {"a.0:update": "a.0", "b": "b"}}')
    return tmp_path


def test_a_folder_of_several_sites_names_them(two_sites: Path) -> None:
    with pytest.raises(StoreError, match="stores of several sites; choose one of .*a.0, .*b$"):
        Store(two_sites)


def test_a_site_s_store_is_opened_by_its_site(two_sites: Path, tmp_path: Path) -> None:
    store = Store.of_site(two_sites, "a.0:update")
    assert store.folder == two_sites / "a.0" and torch.equal(store.acts([3]), ACTS[3:4])
    with pytest.raises(UnknownName, match="no site 'a.0'; there are: a.0:update, b"):
        Store.of_site(two_sites, "a.0")


def test_a_store_of_one_site_is_opened_by_it_too(two_sites: Path) -> None:
    assert Store.of_site(two_sites / "b", "s").images == IMAGES
    with pytest.raises(UnknownName, match="no site 't'; there are: s"):
        Store.of_site(two_sites / "b", "t")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sites": ["a"]}', '{"sites": {"a": 1}}'])
def test_a_list_of_sites_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sites.json").write_text(text)
    for opening in (lambda: Store(tmp_path), lambda: Store.of_site(tmp_path, "a")):
        with pytest.raises(StoreError, match="sites.json does not hold .*site: sub-folder"):
            opening()


# ---- what is refused


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_flipped_bit_names_the_shard_when_it_is_read(tmp_path: Path, at: int) -> None:
    write(tmp_path)
    flip(tmp_path / "00001.safetensors", at)
    store = Store(tmp_path)
    assert torch.equal(store.acts([0, 9]), ACTS[[0, 9]])
    reading: list[Callable[[], object]] = [
        lambda: store.acts([4]),
        lambda: store.take([4 * TOKENS]),
        lambda: list(store.in_order()),
        lambda: next(store.batches(store.rows)),
        lambda: store.sample(store.rows),
        store.check,
        Store(tmp_path, verify=False).check,
    ]
    for read in reading:
        with pytest.raises(StoreError, match="00001.safetensors is corrupt .*--overwrite"):
            read()


def test_unverified_values_are_read_as_they_are(tmp_path: Path) -> None:
    write(tmp_path)
    flip(tmp_path / "00001.safetensors", -1)
    store = Store(tmp_path, verify=False)
    assert torch.equal(store.acts([4]), ACTS[4:5]) and not torch.equal(store.acts([7]), ACTS[7:8])


def test_a_shard_is_verified_once_and_only_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    real = mapped.checksum

    def noted(path: Path, like: str) -> str:
        verified.append(path.name)
        return real(path, like)

    monkeypatch.setattr(mapped, "checksum", noted)
    monkeypatch.setattr(mapped, "MAPS", 1)  # each shard is mapped anew, not verified anew
    store = Store(write(tmp_path))
    assert verified == []
    for _ in range(2):
        assert torch.equal(store.acts([9, 0, 8]), ACTS[[9, 0, 8]])
        assert verified == ["00002.safetensors", "00000.safetensors"]
    store.check()
    assert verified[2:] == [f"0000{i}.safetensors" for i in range(3)]
    list(store.in_order())
    assert len(verified) == 5


@pytest.mark.parametrize("maps", [1, 2, 3])
def test_few_maps_at_a_time_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maps: int
) -> None:
    monkeypatch.setattr(mapped, "MAPS", maps)
    store = Store(write(tmp_path))
    for _ in range(3):
        assert torch.equal(torch.cat(list(store.in_order())), ACTS)
        assert torch.equal(store.take(range(store.rows)), ACTS.flatten(0, 1))
        assert len(store._shards.maps) == maps


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_mapped_shards_hold_no_files_open(tmp_path: Path) -> None:
    store = Store(write(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    store.acts(range(IMAGES))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_broken_header_is_refused_even_unverified(tmp_path: Path) -> None:
    write(tmp_path)
    flip(tmp_path / "00002.safetensors", 7)
    store = Store(tmp_path, verify=False)
    with pytest.raises(StoreError, match="00002.safetensors is corrupt"):
        store.acts([9])


def test_a_shard_of_another_shape_is_refused_even_unverified(tmp_path: Path) -> None:
    index = write(tmp_path) / "index.json"
    (tmp_path / "00001.safetensors").write_bytes((tmp_path / "00002.safetensors").read_bytes())
    changed = json.loads(index.read_text())
    changed["shards"][1]["bytes"] = changed["shards"][2]["bytes"]
    index.write_text(json.dumps(changed))
    store = Store(tmp_path, verify=False)
    with pytest.raises(
        StoreError, match=r"00001.safetensors is corrupt \(it holds \(2, 3, 2\) torch.float32, the "
    ):
        store.acts([4])


def test_a_cut_off_shard_is_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path) / "00001.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    message = (
        f"00001.safetensors is corrupt .it has {size - 5} bytes, the index says {size}.*--over"
    )
    for verify in (True, False):
        with pytest.raises(StoreError, match=message):
            Store(tmp_path, verify=verify)


def test_a_store_with_sha256_is_read_checked_and_finished(tmp_path: Path) -> None:
    """As stores of schema 2 have it."""
    write(tmp_path, finish=False)
    for path in [tmp_path / "index.json", *tmp_path.glob("0*.json")]:
        held = json.loads(path.read_text())
        if "shard" in held:
            shard = tmp_path / f"{path.stem}.safetensors"
            held["shard"]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
            del held["shard"]["checksum"]
        path.write_text(json.dumps(held | {"schema_number": 2} if "width" in held else held))
    store = Store(write(tmp_path))
    assert [len(shard.checksum) for shard in store.index.shards] == [64, 64, 32]
    store.check()
    assert torch.equal(store.acts(range(10)), ACTS)
    assert json.loads((tmp_path / "index.json").read_text())["schema_number"] == 3
    flip(tmp_path / "00001.safetensors", -1)
    with pytest.raises(StoreError, match="00001.safetensors is corrupt .its checksum"):
        Store(tmp_path).check()


def test_a_large_store_is_checked_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "LARGE", 1)
    store = Store(write(tmp_path))
    store.acts([0])
    assert store._shards.checking is not None
    store._shards.checking.join()
    assert not store._shards.unverified
    path = tmp_path / "00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    store = Store(tmp_path)
    batches = store.batches(2)
    with pytest.raises(StoreError, match="00001.safetensors is corrupt .its checksum"):
        for _ in range(10**6):
            next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_a_shard_that_goes_away_is_named_when_it_is_read(tmp_path: Path) -> None:
    stores = [Store(write(tmp_path)), Store(tmp_path, verify=False)]
    (tmp_path / "00001.safetensors").unlink()
    for store in stores:
        with pytest.raises(StoreError, match="00001.safetensors .*No such file"):
            store.acts([5])


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
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_number": 1}))
    with pytest.raises(StoreError, match="has schema 1; this version reads 2 and 3"):
        Store(tmp_path)


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_a_folder_without_a_store_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="is no activation store: it has no index.json"):
        Store(tmp_path / name)
