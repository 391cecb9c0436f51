"""Adam of rows against its formula, and clipping, with dense and with row-sparse gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, Trainer
from vision_sae.train.optimizer import RowAdam, clip_gradients, optimizer_of, rows_of, set_rate

LR, BETAS, EPS = 0.1, (0.9, 0.99), 1e-6


def gradient(step: int, shape: tuple[int, ...], touched: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    dense = torch.randn(shape, generator=generator, dtype=torch.float64)
    keep = torch.zeros(shape[0], dtype=torch.bool)
    keep[touched] = True
    return dense * keep.view(-1, *[1] * (len(shape) - 1))


def sparse(dense: Tensor, touched: list[int]) -> Tensor:
    rows = torch.tensor([touched], dtype=torch.long)
    return torch.sparse_coo_tensor(rows, dense[touched], dense.shape, check_invariants=True)


def adam() -> tuple[nn.Parameter, RowAdam]:
    start = torch.ones(5, 3, dtype=torch.float64)
    parameter = nn.Parameter(start)
    return parameter, RowAdam([parameter], LR, BETAS, EPS)


def test_a_step_is_adams_with_the_mean_square_of_each_row() -> None:
    """Over all rows: m and v as in Kingma & Ba 2015, algorithm 1, v over the row."""
    parameter, optimizer = adam()
    w = parameter.detach().clone()
    m, v = torch.zeros_like(w), torch.zeros(5, 1, dtype=w.dtype)
    for t in range(1, 6):
        g = gradient(t, (5, 3), [0, 1, 2, 3, 4])
        parameter.grad = g.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g.square().mean(1, keepdim=True)
        w = w - LR * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + EPS)
        torch.testing.assert_close(parameter.detach(), w)


def test_vectors_have_adams_own_step() -> None:
    """A row of one number: the same as torch's Adam."""
    mine, theirs = (nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    one = RowAdam([mine], LR, BETAS, EPS)
    other = torch.optim.Adam([theirs], LR, BETAS, EPS)
    for t in range(5):
        mine.grad = theirs.grad = gradient(t, (5,), [0, 1, 2, 3, 4])
        one.step()
        other.step()
        torch.testing.assert_close(mine, theirs)


def test_sparse_gradients_move_their_rows_as_dense_ones_do() -> None:
    """Rows that always have a gradient: as dense. Others: not moved, their moments kept."""
    (one, lazy), (other, dense) = adam(), adam()
    always = [1, 3]
    for t in range(4):
        touched = [*always, 4] if t == 0 else always
        g = gradient(t, (5, 3), touched)
        one.grad, other.grad = sparse(g, touched), g.clone()
        before = one.detach().clone()
        lazy.step()
        dense.step()
        torch.testing.assert_close(one[always], other[always])
        still = [i for i in range(5) if i not in touched]
        assert torch.equal(one[still], before[still])
    assert bool(lazy.state[one]["exp_avg"][4].any())
    assert not torch.equal(one[4], other[4])  # Adam goes on by its momentum


def test_repeated_rows_of_a_sparse_gradient_add_up() -> None:
    (one, lazy), (other, dense) = adam(), adam()
    g = gradient(0, (5, 3), [2])
    twice = torch.sparse_coo_tensor(
        torch.tensor([[2, 2]]), torch.stack([g[2], g[2]]), g.shape, check_invariants=True
    )
    one.grad, other.grad = twice, 2 * g
    lazy.step()
    dense.step()
    torch.testing.assert_close(one[2], other[2])


def test_a_gradient_of_no_row_moves_nothing() -> None:
    parameter, optimizer = adam()
    parameter.grad = sparse(torch.zeros(5, 3, dtype=torch.float64), [])
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(5, 3, dtype=torch.float64))


def test_rows_of_a_gradient() -> None:
    g = gradient(0, (5, 3), [1, 4])
    rows, values = rows_of(sparse(g, [1, 4]))
    assert rows.tolist() == [1, 4] and torch.equal(values, g[[1, 4]])
    rows, values = rows_of(g)
    assert rows.tolist() == [0, 1, 2, 3, 4] and torch.equal(values, g)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("rows", RowAdam)])
def test_optimizers_come_by_name(name: str, kind: type) -> None:
    config = TrainConfig.of(optimizer=name, betas=(0.5, 0.6), eps=1e-3)
    optimizer = optimizer_of(config, SAE(SAEConfig.of(4, 8, k=2)))
    set_rate(optimizer, 0.7)
    assert isinstance(optimizer, kind)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.7, (0.5, 0.6), 1e-3)


@pytest.mark.parametrize("name", ["adam", "rows"])
@pytest.mark.parametrize(
    ("family", "asked", "rate"), [("relu", None, 4), ("relu", 5, 5), ("gated", None, 1)]
)
def test_the_first_step_of_the_biases_is_a_multiple_of_that_of_the_weights(
    family: str, asked: float | None, rate: float, name: str
) -> None:
    sae = SAE(SAEConfig.of(4, 8, family))
    optimizer = optimizer_of(TrainConfig.of(optimizer=name, bias_rate=asked), sae)
    set_rate(optimizer, 0.01)
    before = {n: p.detach().clone() for n, p in sae.named_parameters()}
    for parameter in sae.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for n, p in sae.named_parameters():
        length = 0.01 * rate if n == "b_enc" else 0.01
        torch.testing.assert_close(before[n] - p, torch.full_like(p, length))


# ---- clipping, and what is done to gradients before a step


def with_gradients(*, row_sparse: bool, size: float = 1.0) -> SAE:
    sae = SAE(SAEConfig.of(6, 30, k=2), seed=1)
    sae.row_gradients = row_sparse
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    (size * sae(x).x_hat.square().sum()).backward()
    assert sae.W_enc.grad is not None and sae.W_enc.grad.is_sparse == row_sparse
    return sae


def gradients(sae: SAE) -> Tensor:
    dense = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in sae.parameters()]  # type: ignore[union-attr]
    return torch.cat([g.flatten() for g in dense])


@pytest.mark.parametrize("row_sparse", [False, True])
def test_clipping_scales_all_gradients_to_the_largest_norm(row_sparse: bool) -> None:
    sae = with_gradients(row_sparse=row_sparse)
    before = gradients(sae)
    assert float(before.norm()) > 0.5
    clip_gradients(sae, 0.5)
    torch.testing.assert_close(gradients(sae), before / before.norm() * 0.5)


@pytest.mark.parametrize("row_sparse", [False, True])
def test_small_gradients_are_not_clipped(row_sparse: bool) -> None:
    sae = with_gradients(row_sparse=row_sparse, size=1e-6)
    before = gradients(sae)
    clip_gradients(sae, 0.5)
    torch.testing.assert_close(gradients(sae), before)


@pytest.mark.parametrize("row_sparse", [False, True])
def test_the_part_of_a_gradient_along_its_atom_is_taken_off(row_sparse: bool) -> None:
    sae = with_gradients(row_sparse=row_sparse)
    before = sae.W_dec.grad.to_dense().clone()  # type: ignore[union-attr]
    sae.remove_parallel_gradient()
    after = sae.W_dec.grad.to_dense()  # type: ignore[union-attr]
    torch.testing.assert_close((after * sae.W_dec).sum(1), torch.zeros(30), atol=1e-5, rtol=0)
    along = ((before - after) * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
    torch.testing.assert_close(before - after, along, atol=1e-5, rtol=1e-4)
    assert float((before - after).norm()) > 0


@pytest.mark.parametrize("row_sparse", [False, True])
def test_atoms_that_moved_get_unit_norm_back(row_sparse: bool) -> None:
    sae = with_gradients(row_sparse=row_sparse)
    moved = sae.W_dec.grad.to_dense().any(1)  # type: ignore[union-attr]
    with torch.no_grad():
        sae.W_dec[moved] *= 3
    sae.normalise_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(30))


@pytest.mark.parametrize(
    "options",
    [
        {"k": 3},
        {"k": 3, "tied": True},
        {"family": "relu", "coefficient": 0.3},
        {"family": "gated", "coefficient": 0.3},
        {"family": "jumprelu", "bandwidth": 0.1, "atoms": "unit"},
    ],
)
def test_row_sparse_training_learns(
    options: dict[str, Any], advance: Callable[..., list[dict[str, float]]]
) -> None:
    on = torch.rand(256, 16, generator=torch.Generator().manual_seed(5)) < 0.15
    x = on.float() @ torch.randn(16, 8, generator=torch.Generator().manual_seed(7))
    config = TrainConfig(
        steps=30, batch_size=8, lr=0.02, optimizer="rows", dead="none", clip=1.0, ema=0.9
    )
    trainer = Trainer(SAE(SAEConfig.of(8, 256, **options)), MemoryStore(x), config)
    trainer.start()
    numbers = advance(trainer, 30)
    assert sum(n["fvu"] for n in numbers[-5:]) < 0.9 * sum(n["fvu"] for n in numbers[:5])
    torch.testing.assert_close(trainer.finish().W_dec.norm(dim=1), torch.ones(256))
