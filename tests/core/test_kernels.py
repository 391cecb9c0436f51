"""The fast paths give the values and gradients of the dense form, checked in float64."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae import kernels, losses, sparsity
from vision_sae.codes import Codes
from vision_sae.sae import SAE, SAEConfig

FAMILIES = ["topk", "batchtopk"]


def sae_of(family: str, d: int = 6, s: int = 20, k: int = 3) -> SAE:
    sae = SAE(SAEConfig.of(d, s, family, k), seed=1).double()
    with torch.no_grad():
        for p in sae.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    return sae


def rows_of(sae: SAE, n: int = 16) -> Float[Tensor, "n d"]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, sae.config.d, generator=generator, dtype=torch.float64)


def dense_forward(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """The obvious twin: everything dense, gradients by autograd alone."""
    pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    with torch.no_grad():
        keep = sae._sparsify(pre.detach()).to_dense() > 0
    f = pre.relu() * keep
    return f, f @ sae.W_dec + sae.b_dec


@pytest.mark.parametrize("family", FAMILIES)
def test_step_equals_the_dense_twin(family: str) -> None:
    sae, twin = sae_of(family), sae_of(family)
    x = rows_of(sae).requires_grad_()
    x_twin = x.detach().clone().requires_grad_()
    codes, x_hat = sae(x)
    f, x_hat_twin = dense_forward(twin, x_twin)
    assert torch.allclose(codes.to_dense(), f, atol=1e-12)
    assert torch.allclose(x_hat, x_hat_twin, atol=1e-12)
    losses.fvu(x, x_hat).backward()
    losses.fvu(x_twin, x_hat_twin).backward()
    assert torch.allclose(x.grad, x_twin.grad, atol=1e-12)  # type: ignore[arg-type]
    for (name, p), (_, q) in zip(sae.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-12), name  # type: ignore[arg-type]


def test_auxk_equals_the_dense_twin_and_trains_the_encoder_of_dead_latents_only() -> None:
    sae, twin = sae_of("topk"), sae_of("topk")
    x = rows_of(sae)
    dead = torch.zeros(20, dtype=torch.bool)
    dead[[1, 4, 5, 9, 17]] = True
    residual = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    losses.auxk(sae, x, residual, dead, 2).backward()
    pre = ((x - twin.b_dec) @ twin.W_enc.T + twin.b_enc).masked_fill(~dead, -torch.inf)
    keep = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(2).indices, True)
    guess = torch.where(keep, pre, torch.zeros_like(pre)).relu() @ twin.W_dec
    spread = (residual - residual.mean(0)).square().sum()
    ((residual - guess).square().sum() / spread).backward()
    for (name, p), (_, q) in zip(sae.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-12), name  # type: ignore[arg-type]
    assert sae.W_enc.grad is not None
    assert torch.equal(sae.W_enc.grad.abs().sum(1) > 0, sae.W_enc.grad.abs().sum(1) * dead > 0)
    assert bool((sae.W_enc.grad[dead].abs().sum(1) > 0).any())


def test_auxk_has_no_bias_and_does_not_reach_the_residual() -> None:
    sae = sae_of("topk")
    residual = rows_of(sae).requires_grad_()
    losses.auxk(sae, rows_of(sae), residual, torch.ones(20, dtype=torch.bool), 3).backward()
    assert residual.grad is None
    shifted = sae_of("topk")
    with torch.no_grad():  # the same centred input: only a decoded bias could change the loss
        shifted.b_dec += 7.0
    x = rows_of(sae)
    every = torch.ones(20, dtype=torch.bool)
    one = losses.auxk(sae, x, residual, every, 3)
    other = losses.auxk(shifted, x + 7.0, residual, every, 3)
    assert torch.allclose(one, other)


def test_auxk_is_zero_without_dead_latents() -> None:
    sae = sae_of("topk")
    none = torch.zeros(20, dtype=torch.bool)
    assert float(losses.auxk(sae, rows_of(sae), rows_of(sae), none, 3)) == 0.0


def test_decode_has_the_gradients_of_finite_differences() -> None:
    codes = sparsity.topk(torch.randn(5, 9, dtype=torch.float64), 3)
    atoms = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    values = codes.values.clone().requires_grad_()

    def decode(values: Tensor, atoms: Tensor) -> Tensor:
        return kernels.decode(Codes(values, codes.indices, codes.width), atoms)

    assert torch.autograd.gradcheck(decode, (values, atoms))


def test_gathered_dots_in_pieces_are_the_dots() -> None:
    dense, rows = torch.randn(50, 300), torch.randn(40, 300)
    indices = torch.randint(0, 40, (50, 300))  # large enough for several pieces
    want = (dense @ rows.T).gather(1, indices)
    assert torch.allclose(kernels.gathered_dots(dense, rows, indices), want, atol=1e-4)
