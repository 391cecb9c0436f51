"""Sparse products against dense ones, in float64, and what a training step holds in memory."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vision_sae.sae import SAE, SAEConfig
from vision_sae.sparse import kernels, select
from vision_sae.sparse.codes import Codes, DenseCodes, Support
from vision_sae.sparse.select import Product
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, Trainer

shapes = st.tuples(st.integers(0, 7), st.integers(1, 12), st.integers(0, 1000))
N, WIDTH = 5, 9


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def codes_of(n: int, s: int, seed: int) -> Codes:
    """Rows of different lengths, some empty, some entries 0 and some twice at one place."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (n,), generator=generator)
    rows = torch.arange(n).repeat_interleave(lengths)
    indices = torch.randint(0, s, (len(rows),), generator=generator)
    values = torch.randn(len(rows), generator=generator, dtype=torch.float64)
    values = values * (torch.rand(len(rows), generator=generator) < 0.8)
    return Codes(values, Support.of_rows(rows, indices, n, s))


def some_codes() -> Codes:
    return codes_of(N, WIDTH, 3)


# ---- codes


@given(shapes)
def test_sorting_by_latent_lists_each_entry_once(shape: tuple[int, int, int]) -> None:
    codes = codes_of(*shape)
    by = codes.support.by_latent
    assert sorted(by.order.tolist()) == list(range(len(codes.indices)))
    assert torch.equal(by.rows, codes.rows[by.order])
    for latent in range(codes.width):
        entries = by.order[int(by.start[latent]) : int(by.start[latent + 1])]
        assert set(codes.indices[entries].tolist()) <= {latent}


@given(shapes)
def test_rows_come_back_from_offsets(shape: tuple[int, int, int]) -> None:
    codes = codes_of(*shape)
    again = Support(codes.indices, codes.offsets, codes.width)
    assert torch.equal(again.rows, codes.rows)
    assert len(again) == len(codes) == shape[0]


@given(shapes)
def test_codes_with_and_without_a_matrix_agree(shape: tuple[int, int, int]) -> None:
    codes = codes_of(*shape).merged()
    dense = DenseCodes(codes.to_dense())
    assert torch.equal(codes.l0, dense.l0) and torch.equal(codes.fired(), dense.fired())
    assert torch.equal(dense.sparse().to_dense(), dense.values)
    assert torch.equal(codes.without_zeros().to_dense(), dense.values)
    assert bool(codes.without_zeros().active.all())
    doubled = codes.map(lambda v: 2 * v)
    assert torch.equal(doubled.to_dense(), dense.map(lambda v: 2 * v).values)
    factor = torch.arange(codes.width, dtype=torch.float64)
    assert torch.equal(
        Codes(codes.values * codes.per_entry(factor), codes.support).to_dense(),
        dense.values * dense.per_entry(factor),
    )


@given(shapes)
def test_merged_adds_entries_at_the_same_place(shape: tuple[int, int, int]) -> None:
    codes = codes_of(*shape)
    merged = codes.merged()
    places = list(zip(merged.rows.tolist(), merged.indices.tolist(), strict=True))
    assert len(set(places)) == len(places)
    torch.testing.assert_close(merged.to_dense(), codes.to_dense())


def test_other_values_share_the_sort() -> None:
    codes = some_codes()
    assert codes.map(torch.zeros_like).support.by_latent is codes.support.by_latent


# ---- products and their gradients


@given(shapes)
def test_products_are_those_of_the_matrix(shape: tuple[int, int, int]) -> None:
    codes, (n, s, seed) = codes_of(*shape), shape
    values, support, dense = codes.values, codes.support, codes.to_dense()
    atoms, x = drawn((s, 4), seed), drawn((n, 4), seed + 1)
    torch.testing.assert_close(kernels.gather_sum(values, support, atoms), dense @ atoms)
    torch.testing.assert_close(kernels.scatter_sum(values, support, x), dense.T @ x)
    torch.testing.assert_close(kernels.latent_sum(values, support), dense.sum(0))
    dots = kernels.entry_dots(x, atoms, support)
    torch.testing.assert_close(dots, (x @ atoms.T)[codes.rows, codes.indices])


@given(shapes)
def test_a_row_sparse_gradient_covers_the_latents_that_occur(shape: tuple[int, int, int]) -> None:
    codes, (n, s, seed) = codes_of(*shape), shape
    x = drawn((n, 4), seed)
    rows = Support(codes.indices, codes.offsets, s, row_gradients=True)
    gradient = kernels.matrix_gradient(codes.values, rows, x)
    assert gradient.is_sparse and gradient.is_coalesced()
    assert gradient.indices()[0].tolist() == sorted(set(codes.indices.tolist()))
    torch.testing.assert_close(gradient.to_dense(), codes.to_dense().T @ x)


def test_decode_has_the_gradients_of_finite_differences() -> None:
    codes = some_codes()
    values, atoms = codes.values.clone().requires_grad_(), drawn((WIDTH, 4)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, a: kernels.decode(Codes(v, codes.support), a), (values, atoms)
    )


@pytest.mark.parametrize("known", [True, False])
def test_project_has_the_gradients_of_finite_differences(known: bool) -> None:
    support = some_codes().support
    x, weight, bias = (drawn(shape).requires_grad_() for shape in ((N, 4), (WIDTH, 4), (WIDTH,)))

    def project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        pre = (x @ weight.T + bias).detach()
        z = pre[support.rows, support.indices] if known else None
        return kernels.project(x, weight, bias, support, z)

    want = (x @ weight.T + bias)[support.rows, support.indices]
    torch.testing.assert_close(project(x, weight, bias), want)
    assert torch.autograd.gradcheck(project, (x, weight, bias))


# ---- memory


class Largest(TorchDispatchMode):
    """Remembers the largest storage that any operation has made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        for tensor in made:
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, elements)
        return result


FAMILIES: dict[str, dict[str, Any]] = {
    "topk": {"k": 4},
    "topk-competing": {"k": 4, "atoms": "free", "rescale": True},
    "topk-multi": {"k": 2, "multi": 2},
    "topk-ks": {"k": 4, "nest": {"kind": "k", "ks": (1, 2, 4)}},
    "topk-prefix": {"k": 4, "nest": {"kind": "prefix"}},
    "topk-both": {"k": 4, "nest": {"kind": "both", "ks": (1, 2, 4)}},
    "abstopk": {"family": "abstopk", "k": 4},
    "batchtopk": {"family": "batchtopk", "k": 4},
    "relu": {"family": "relu"},
    "panneal": {"family": "panneal"},
    "jumprelu": {"family": "jumprelu", "bandwidth": 0.1, "start": 0.3},
    "jumprelu-step": {"family": "jumprelu", "mode": "step", "bandwidth": 0.1, "start": 0.3},
    "gated": {"family": "gated"},
}


@pytest.mark.parametrize("optimizer", ["adam", "rows"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_never_holds_a_number_per_row_and_latent(
    name: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the forward nor in the backward pass, whatever the family, when codes are few."""
    n, s, d = 512, 1024, 4
    monkeypatch.setattr(select, "CPU_TILE", (64, 128))
    sae = SAE(SAEConfig.of(d, s, **FAMILIES[name]))
    with torch.no_grad():
        sae.W_enc.div_(sae.W_enc.norm(dim=1, keepdim=True))
        sae.b_enc.sub_(2.0)  # few are active, so that codes are sparse
    x = drawn((n, d)).float()
    config = TrainConfig(
        steps=4, batch_size=n, optimizer=optimizer, dead_after=10**6, inputs="none"
    )
    trainer = Trainer(sae, MemoryStore(x), config)
    trainer.start()
    trainer.train_step(x)
    trainer.step += 1
    with Largest() as largest:
        numbers = trainer.train_step(x, log=True)
    assert 0 < numbers["l0"] < s / 16
    assert largest.elements < n * s // 4


def test_the_measure_of_memory_sees_a_whole_matrix() -> None:
    """So that the test above can fail: a tile as large as the batch is seen."""
    product = Product(drawn((64, 4)), drawn((256, 4)), drawn((256,)), tile=(64, 256))
    with Largest() as largest, torch.no_grad():
        select.top(product, 2)
    assert largest.elements >= 64 * 256
    with Largest() as largest:
        (drawn((64, 4)).requires_grad_() @ drawn((4, 256))).relu().sum().backward()
    assert largest.elements >= 64 * 256
