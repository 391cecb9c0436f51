"""Screening in bfloat16 gives exactly the latents that the float32 product gives."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.sae import SAE, SAEConfig
from vision_sae.sparse import screen, select
from vision_sae.sparse.select import Product
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, train


def product(n: int, d: int, s: int, seed: int, spread: float = 1.0) -> Product:
    """Rows near each other give numbers near each other: hard to tell apart when rounded."""
    generator = torch.Generator().manual_seed(seed)
    x = 1 + spread * torch.randn(n, d, generator=generator)
    weight = 1 + spread * torch.randn(s, d, generator=generator)
    return Product.of(x, weight, 0.1 * torch.randn(s, generator=generator))


def dense(p: Product) -> Tensor:
    return p.x.double() @ p.weight.double().T + p.bias.double()


@given(
    n=st.integers(1, 20), s=st.integers(1, 80), k=st.integers(1, 6), seed=st.integers(0, 999),
    margin=st.integers(0, 8), spread=st.sampled_from([1.0, 0.1, 0.01]),
)  # fmt: skip
def test_the_k_largest_are_exact_for_any_margin(
    n: int, s: int, k: int, seed: int, margin: int, spread: float
) -> None:
    p = product(n, 16, s, seed, spread)
    found = screen.top(p, min(k, s), margin=margin)
    want = dense(p).topk(min(k, s), dim=1).values
    got = dense(p).gather(1, found.latents)
    assert torch.allclose(got.sort(1).values, want.sort(1).values, atol=2e-5)
    assert torch.allclose(found.z.double(), got, atol=1e-4)


def test_rows_that_bfloat16_cannot_settle_are_done_again() -> None:
    close = screen.top(product(50, 64, 500, 0, spread=0.001), 4, margin=4)
    assert bool(close.redone.all())
    apart = torch.eye(64) * torch.arange(1.0, 65.0)[:, None]
    clear = screen.top(Product.of(torch.ones(5, 64), apart, torch.zeros(64)), 4, margin=8)
    assert not bool(clear.redone.any())


def test_without_the_second_look_bfloat16_chooses_others() -> None:
    """The reason for screening: the low-precision choice alone is not the choice."""
    p = product(50, 64, 500, 0, spread=0.001)
    rough = select.top(p.lower(torch.bfloat16), 4)[1].sort(1).values
    assert not torch.equal(rough, screen.top(p, 4).latents.sort(1).values)


def test_screened_training_follows_the_exact_one() -> None:
    x = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))

    def trained(precision: str) -> Tensor:
        config = TrainConfig.of(steps=20, batch_size=128, lr=1e-2, precision=precision)
        return train(SAE(SAEConfig.of(16, 64, "topk", 4)), MemoryStore(x), config).W_dec.detach()

    assert torch.allclose(trained("screened"), trained("float32"), atol=1e-4)
