"""Codes and the sparsity families against dense, obvious twins."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from vision_sae import sparsity
from vision_sae.codes import Codes

shapes = st.tuples(st.integers(1, 9), st.integers(1, 24), st.integers(0, 1000))


def pre_of(n: int, s: int, seed: int) -> Float[Tensor, "n s"]:
    return torch.randn(n, s, generator=torch.Generator().manual_seed(seed))


def slow_topk(pre: Tensor, k: int) -> Tensor:
    out = torch.zeros_like(pre)
    for row in range(len(pre)):
        for i in pre[row].argsort(descending=True)[:k]:
            out[row, i] = max(0.0, float(pre[row, i]))
    return out


def slow_batch_topk(pre: Tensor, k: int) -> Tensor:
    flat = pre.relu().flatten()
    out = torch.zeros_like(flat)
    for i in flat.argsort(descending=True)[: k * len(pre)]:
        out[i] = flat[i]
    return out.view_as(pre)


@given(shapes, st.data())
def test_topk_keeps_the_k_largest_of_each_row(
    shape: tuple[int, int, int], data: st.DataObject
) -> None:
    pre = pre_of(*shape)
    k = data.draw(st.integers(1, shape[1]))
    assert torch.equal(sparsity.topk(pre, k).to_dense(), slow_topk(pre, k))


@given(shapes, st.data())
def test_batch_topk_keeps_the_kn_largest_of_the_batch(
    shape: tuple[int, int, int], data: st.DataObject
) -> None:
    pre = pre_of(*shape)
    k = data.draw(st.integers(1, shape[1]))
    assert torch.equal(sparsity.batch_topk(pre, k).to_dense(), slow_batch_topk(pre, k))


def test_batch_topk_finds_a_row_that_takes_the_whole_budget() -> None:
    """One loud row: four times k candidates a row are not enough, and the search widens."""
    pre = torch.full((8, 64), 0.01)
    pre[3] = torch.arange(64) + 1.0
    dense = sparsity.batch_topk(pre, 2).to_dense()
    assert dense[3].count_nonzero() == 16
    assert dense.count_nonzero() == 16


def test_a_batch_with_few_positives_keeps_no_zeros_as_active() -> None:
    pre = torch.full((4, 8), -1.0)
    pre[0, 0] = 2.0
    codes = sparsity.batch_topk(pre, 3)
    assert codes.l0.tolist() == [1, 0, 0, 0]


@given(shapes, st.floats(-1, 2))
def test_threshold_keeps_what_exceeds_it(shape: tuple[int, int, int], theta: float) -> None:
    pre = pre_of(*shape)
    want = torch.where(pre > max(0.0, torch.tensor(theta)), pre, torch.zeros(()))
    assert torch.equal(sparsity.threshold(pre, torch.tensor(theta)).to_dense(), want)


def test_an_empty_batch_gives_empty_codes() -> None:
    assert sparsity.threshold(torch.zeros(0, 5), torch.tensor(0.1)).to_dense().shape == (0, 5)


@given(shapes)
def test_sorting_by_latent_lists_each_entry_once(shape: tuple[int, int, int]) -> None:
    codes = sparsity.topk(pre_of(*shape), min(3, shape[1]))
    by = codes.by_latent
    assert sorted(by.order.tolist()) == list(range(codes.indices.numel()))
    for latent in range(codes.width):
        entries = by.order[int(by.start[latent]) : int(by.start[latent + 1])]
        assert set(codes.indices.flatten()[entries].tolist()) <= {latent}
    assert torch.equal(by.row, by.order // codes.indices.shape[1])


def test_other_values_share_the_sort() -> None:
    codes = Codes(torch.rand(3, 2), torch.randint(0, 5, (3, 2)), 5)
    assert codes.with_values(torch.zeros(3, 2)).by_latent is codes.by_latent


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, 0.0]])
def test_dense_adds_entries_at_the_same_index(values: list[float]) -> None:
    """Padding is value 0 at any index, also at one that is active."""
    codes = Codes(torch.tensor([values]), torch.tensor([[2, 2]]), 4)
    assert codes.to_dense()[0, 2] == sum(values)
