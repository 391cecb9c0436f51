"""Selection tile by tile against selection from the whole matrix."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.sparse import select
from vision_sae.sparse.codes import Codes, Support
from vision_sae.sparse.select import Product

sizes = st.tuples(st.integers(0, 9), st.integers(1, 24), st.integers(0, 1000))
tiles = st.tuples(st.integers(1, 10), st.integers(1, 30))


def product_of(
    n: int, s: int, seed: int, *, tile: tuple[int, int] = (512, 8192), competing: bool = False
) -> Product:
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((n, 5), (s, 5), (s,))
    )
    norms = torch.rand(s, generator=generator, dtype=torch.float64) + 0.5 if competing else None
    return Product(x, weight, bias, norms, tile=tile)


def pre_of(product: Product) -> Tensor:
    return product.x @ product.weight.T + product.bias


def scores_of(product: Product) -> Tensor:
    pre = pre_of(product)
    return pre if product.norms is None else pre * product.norms


def given_scores(z: Tensor, tile: tuple[int, int] = (2, 3)) -> Product:
    """A product whose pre-activations are these numbers."""
    s = z.shape[1]
    return Product(z, torch.eye(s, dtype=z.dtype), torch.zeros(s, dtype=z.dtype), tile=tile)


def placed(values: Tensor, support: Support) -> Tensor:
    return Codes(values, support).to_dense()


def even(found: tuple[Tensor, Tensor], s: int) -> Tensor:
    return Codes.even(*found, s).to_dense()


def only(keep: Tensor, product: Product) -> Tensor:
    """Pre-activations where they are kept, else 0."""
    return pre_of(product) * keep


def rowwise_largest(scores: Tensor, k: int) -> Tensor:
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for row, numbers in zip(keep, scores, strict=True):
        row[numbers.argsort(descending=True)[:k]] = True
    return keep


@given(sizes, tiles, st.booleans(), st.booleans(), st.data())
def test_top_keeps_the_k_largest_of_each_row(
    size: Any, tile: Any, competing: bool, magnitude: bool, data: st.DataObject
) -> None:
    product = product_of(*size, tile=tile, competing=competing)
    k = data.draw(st.integers(1, size[1]))
    found = select.top(product, k, magnitude=magnitude)
    scores = scores_of(product)
    want = only(rowwise_largest(scores.abs() if magnitude else scores, k), product)
    assert found[0].shape == (size[0], k)
    torch.testing.assert_close(even(found, size[1]), want)


@given(sizes, tiles, st.booleans(), st.data())
def test_above_keeps_what_exceeds_a_bound(
    size: Any, tile: Any, competing: bool, data: st.DataObject
) -> None:
    product = product_of(*size, tile=tile, competing=competing)
    numbers = st.floats(-2, 2)
    one = data.draw(st.one_of(numbers, st.lists(numbers, min_size=size[1], max_size=size[1])))
    least = torch.tensor(one, dtype=torch.float64)
    support, z = select.above(product, least)
    assert torch.equal(support.rows, support.rows.sort().values)
    torch.testing.assert_close(placed(z, support), only(scores_of(product) > least, product))


@given(sizes, tiles, st.booleans(), st.data())
def test_batch_top_keeps_the_kn_largest_positives(
    size: Any, tile: Any, competing: bool, data: st.DataObject
) -> None:
    product = product_of(*size, tile=tile, competing=competing)
    k = data.draw(st.integers(1, size[1]))
    scores = scores_of(product)
    keep = rowwise_largest(scores.view(1, -1), k * size[0]).view_as(scores) & (scores > 0)
    support, z = select.batch_top(product, k)
    torch.testing.assert_close(placed(z, support), only(keep, product))


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 5), tiles, st.integers(0, 1000))
def test_group_max_keeps_the_largest_of_each_group(
    n: int, groups: int, each: int, tile: Any, seed: int
) -> None:
    product = product_of(n, groups * each, seed, tile=tile, competing=True)
    want = torch.cat([rowwise_largest(g, 1) for g in scores_of(product).chunk(groups, 1)], 1)
    found = even(select.group_max(product, groups), groups * each)
    torch.testing.assert_close(found, only(want, product))


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("width", [1024, 1000])
def test_the_largest_are_found_in_wide_tiles_too(k: int, width: int) -> None:
    """Wide tiles are searched group by group; the largest may all lie in one group."""
    product = product_of(6, width, 0)
    want = only(rowwise_largest(scores_of(product), k), product)
    torch.testing.assert_close(even(select.top(product, k), width), want)
    z = torch.zeros(2, width)
    z[0, :: width // 16][:k] = 1 + torch.arange(k)
    z[1, :k] = 1 + torch.arange(k)
    for magnitude, sign in ((False, 1), (True, -1)):
        values, latents = select.top(given_scores(z * sign, (2, width)), k, magnitude=magnitude)
        assert torch.equal(even((values, latents), width), z * sign)


def test_a_row_may_take_the_whole_budget() -> None:
    z = torch.full((300, 8), 0.01)
    z[151] = torch.arange(8) + 1.0
    z[7, 2] = 0.5
    support, values = select.batch_top(given_scores(z[149:157], (3, 5)), 1)
    assert sorted(values.tolist()) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert support.offsets.diff().tolist() == [0, 0, 8, 0, 0, 0, 0, 0]
    support, values = select.batch_top(given_scores(z, (64, 5)), 1)  # rows beyond the sample
    assert {float(v) for v in values if v > 0.1} == {0.5, 1, 2, 3, 4, 5, 6, 7, 8}
    assert len(values) >= 300


@pytest.mark.parametrize("k", [1, 2, 4])
def test_equal_numbers_end_the_search(k: int) -> None:
    """A bound guessed from the sample lies above nothing when all numbers are the same."""
    support, values = select.batch_top(given_scores(torch.full((6, 4), 0.5)), k)
    assert len(values) >= 6 * k and set(values.tolist()) == {0.5}


def test_budgets_as_large_as_the_matrix_keep_every_positive() -> None:
    z = torch.arange(1.0, 13).view(3, 4)
    support, values = select.batch_top(given_scores(z), 4)
    assert torch.equal(placed(values, support), z)


def test_nan_ends_the_search() -> None:
    z = torch.full((6, 4), float("nan"))
    z[0, 0] = 1.0
    _, values = select.batch_top(given_scores(z), 2)
    assert values.tolist() in ([1.0], [])


@pytest.mark.parametrize(
    "choose",
    [
        lambda p: Codes.even(*select.top(p, 3), 6),
        lambda p: Codes.even(*select.top(p, 3, magnitude=True), 6),
        lambda p: Codes.even(*select.group_max(p, 3), 6),
        lambda p: Codes(*select.above(p, torch.tensor(0.1))[::-1]),
        lambda p: Codes(*select.batch_top(p, 3)[::-1]),
    ],
)
def test_an_empty_batch_gives_empty_codes(choose: Callable[[Product], Codes]) -> None:
    assert choose(given_scores(torch.zeros(0, 6))).to_dense().shape == (0, 6)


@pytest.mark.parametrize("tile", [(1, 1), (3, 5), (5, 7), (100, 100)])
def test_tiles_change_nothing_of_an_sae(
    case: Any, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes of every family, in training and at inference."""
    for training in (True, False):
        sae = case.sae().train(training)
        whole = sae(case.rows()).codes.to_dense()
        usual = Product.of

        def small(*arguments: Any, usual: Any = usual) -> Product:
            return replace(usual(*arguments), tile=tile)

        with monkeypatch.context() as patch:
            patch.setattr(Product, "of", small)
            torch.testing.assert_close(sae(case.rows()).codes.to_dense(), whole)


def test_autocast_selects_in_low_precision_and_the_numbers_are_exact() -> None:
    product = product_of(4, 6, 0)
    low = product.lower(torch.bfloat16)
    assert product.exact and not low.exact
    values, latents = select.top(low, 2)
    assert values.dtype == torch.float32
    torch.testing.assert_close(
        values.double(), pre_of(product).gather(1, latents), atol=0.05, rtol=0.05
    )
