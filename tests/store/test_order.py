"""The order is a permutation that is computed, the same as its slow twin, and looks random."""

import math
from itertools import count, islice

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.store import MemoryStore
from vision_sae.store.order import ROUNDS, permuted, shuffled

SEEDS = st.integers(-(2**40), 2**70)
EPOCHS = st.integers(0, 2**40)


def order(rows: int, seed: int = 0, epoch: int = 0) -> Tensor:
    return permuted(torch.arange(rows), rows, seed=seed, epoch=epoch)


# ---- it is a permutation


@settings(deadline=None)
@given(st.integers(1, 5000), SEEDS, EPOCHS)
@example(1, 0, 0)
@example(2, 0, 0)
@example(3, 0, 0)
def test_every_row_stands_at_one_position(rows: int, seed: int, epoch: int) -> None:
    assert torch.equal(order(rows, seed, epoch).sort().values, torch.arange(rows))


def test_small_numbers_of_rows_all_of_them() -> None:
    for rows in range(1, 300):
        assert torch.equal(order(rows, rows).sort().values, torch.arange(rows))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 2**62), st.data())
def test_positions_may_be_asked_for_in_any_number_and_order(rows: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, rows - 1), unique=True, max_size=30))
    together = permuted(torch.tensor(positions, dtype=torch.int64), rows, seed=1, epoch=2)
    alone = [int(permuted(torch.tensor([p]), rows, seed=1, epoch=2)) for p in positions]
    assert together.tolist() == alone and len(set(alone)) == len(positions)
    assert all(0 <= row < rows for row in alone)


# ---- the twin: whole numbers of Python, one position at a time


def slow_hash(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def slow_splitmix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def slow(position: int, rows: int, seed: int, epoch: int) -> int:
    state = slow_splitmix(slow_splitmix(seed) + epoch)
    a = next(a for a in count(math.isqrt(rows)) if a * a >= rows)
    b = next(b for b in count(rows // a) if a * b >= rows)
    while True:
        left, right = divmod(position, b)
        for i in range(ROUNDS):
            key = slow_splitmix(state + i) >> 32
            if i % 2 == 0:
                left = (left + slow_hash(right ^ key)) % a
            else:
                right = (right + slow_hash(left ^ key)) % b
        position = left * b + right
        if position < rows:
            return position


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.integers(1, 5000), st.integers(1, 2**62)), SEEDS, EPOCHS, st.data())
def test_the_slow_twin_says_the_same(rows: int, seed: int, epoch: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=10))
    fast = permuted(torch.tensor(positions), rows, seed=seed, epoch=epoch)
    assert fast.tolist() == [slow(p, rows, seed, epoch) for p in positions]


# ---- it looks random


@settings(deadline=None, max_examples=50)
@given(st.integers(100, 5000), SEEDS, EPOCHS)
def test_other_seeds_and_epochs_give_other_orders(rows: int, seed: int, epoch: int) -> None:
    one = order(rows, seed, epoch)
    for other in (order(rows, seed + 1, epoch), order(rows, seed, epoch + 1)):
        assert int((one == other).sum()) < 20  # of independent ones: 1 on average


def test_seed_and_epoch_do_not_add_up() -> None:
    assert not torch.equal(order(1000, 0, 1), order(1000, 1, 0))


def uniform(counts: Tensor, expected: float) -> None:
    """Chi-square: neither further from uniform than chance, nor closer."""
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert 1e-4 < stats.chi2.sf(statistic, counts.numel() - 1) < 1 - 1e-4


@pytest.mark.parametrize("rows", [2, 3, 5, 7, 16, 30, 64, 100])
@pytest.mark.parametrize("place", ["first", "last"])
def test_each_row_is_as_often_at_a_position(rows: int, place: str) -> None:
    position = torch.tensor([0 if place == "first" else rows - 1])
    seeds = 40 * rows
    found = [int(permuted(position, rows, seed=seed, epoch=0)) for seed in range(seeds)]
    uniform(torch.tensor(found).bincount(minlength=rows), seeds / rows)


@pytest.mark.parametrize("rows", [5, 7, 9])
def test_each_pair_of_rows_is_as_often_at_two_neighbouring_positions(rows: int) -> None:
    positions, each = torch.tensor([1, 2]), 40
    counts = torch.zeros(rows, rows)
    for epoch in range(each * rows * (rows - 1)):
        first, second = permuted(positions, rows, seed=3, epoch=epoch).tolist()
        counts[first, second] += 1
    assert not counts.diagonal().any()
    uniform(counts[~torch.eye(rows, dtype=torch.bool)], each)


@pytest.mark.parametrize("rows", [10**4, 65_537, 10**6, 2**20 + 1, 10**9])
def test_a_batch_is_spread_over_all_rows(rows: int) -> None:
    for epoch in range(5):
        found = permuted(torch.arange(4096), rows, seed=0, epoch=epoch)
        uniform((found * 64 // rows).bincount(minlength=64), 4096 / 64)
        if rows > 10**5:  # below, a batch without repetition is more even than chance
            uniform((found % 64).bincount(minlength=64), 4096 / 64)


@pytest.mark.parametrize("rows", [5000, 65_536, 10**6, 10**9])
@pytest.mark.parametrize("lag", [1, 2, 31, 256, 1000])
def test_neighbouring_positions_are_not_correlated(rows: int, lag: int) -> None:
    n = min(rows, 50_000)
    x = permuted(torch.arange(n), rows, seed=lag, epoch=0).double()
    r = float(torch.corrcoef(torch.stack([x[:-lag], x[lag:]]))[0, 1])
    assert abs(r) < 4.5 / math.sqrt(n - lag)
    steps = ((x[lag:] - x[:-lag]) % rows * 32 / rows).long()  # the distance, around the end
    uniform(steps.bincount(minlength=32), (n - lag) / 32)


def test_orders_of_two_epochs_are_not_correlated() -> None:
    one, other = (order(50_000, 0, epoch).double() for epoch in (0, 1))
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 4.5 / math.sqrt(50_000)


# ---- batches


@settings(deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 400), st.integers(0, 40), st.integers(1, 4), st.integers()
)
def test_parts_are_every_so_manieth_row_of_the_batch(
    rows: int, size: int, start: int, parts: int, seed: int
) -> None:
    whole = next(shuffled(rows, size, seed=seed, start=start))
    for rank in range(parts):
        part = next(shuffled(rows, size, seed=seed, start=start, part=(rank, parts)))
        assert torch.equal(part, whole[rank::parts])


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 400))
def test_an_epoch_is_the_permutation_without_its_rest(rows: int, size: int) -> None:
    size = min(size, rows)
    per_epoch = rows // size
    batches = shuffled(rows, size, seed=9, start=0)
    for epoch in range(2):
        found = torch.cat(list(islice(batches, per_epoch)))
        assert torch.equal(found, order(rows, 9, epoch)[: per_epoch * size])


def test_a_late_batch_of_a_huge_store_is_found_at_once() -> None:
    batch = next(shuffled(10**12, 4096, seed=0, start=10**11))
    assert len(batch.unique()) == 4096 and int(batch.max()) > 9 * 10**11


def test_a_memory_store_is_read_in_this_order() -> None:
    x = torch.randn(50, 3)
    for batch, rows in zip(
        islice(MemoryStore(x).batches(8, seed=4, start=5), 9),
        shuffled(50, 8, seed=4, start=5),
        strict=False,
    ):
        assert torch.equal(batch, x[rows])


@pytest.mark.parametrize(("rows", "size"), [(0, 4), (4, 0), (4, -1)])
def test_no_rows_and_empty_batches_are_refused(rows: int, size: int) -> None:
    with pytest.raises(DataError, match=f"no batches of {size} rows can be made of {rows} rows"):
        next(shuffled(rows, size, seed=0, start=0))
