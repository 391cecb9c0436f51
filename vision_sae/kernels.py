"""The fast paths: products with sparse codes, forward and backward, never dense in [n s].

Each has a slow obvious twin in tests/core/test_kernels.py. What the backward passes use:
with G the sparse [n s] gradient of the codes, dW = G^T x is one CSR product whose rows are latents,
and the gradient of a code is a dot product of two gathered rows.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.codes import ByLatent, Codes

with warnings.catch_warnings():
    # torch says once per process that CSR is in beta: here, rather than in a user's training log
    warnings.simplefilter("ignore", UserWarning)
    torch.eye(2).to_sparse_csr()


def gather_sum(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "s d"]
) -> Float[Tensor, "n d"]:
    """Codes times a matrix: the weighted sum of the rows that are active."""
    return F.embedding_bag(indices, rows, per_sample_weights=values, mode="sum")


def scatter_rows(
    values: Float[Tensor, "n k"], by: ByLatent, dense: Float[Tensor, "n d"], width: int
) -> Float[Tensor, "s d"]:
    """Transposed codes times a matrix, as one CSR product."""
    sorted_values = values.flatten()[by.order]
    size = (width, len(dense))
    with torch.sparse.check_sparse_tensor_invariants(False):
        csr = torch.sparse_csr_tensor(by.start, by.row, sorted_values, size=size)
    return csr @ dense


class _Decode(torch.autograd.Function):
    """values [n k], indices, atoms [s d] -> sum of atoms [n d]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, atoms: Tensor, codes: Codes) -> Tensor:
        ctx.codes = codes
        ctx.save_for_backward(values, atoms)
        return gather_sum(values, codes.indices, atoms)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, atoms = ctx.saved_tensors
        codes: Codes = ctx.codes
        grad = grad.contiguous()
        grad_values = gathered_dots(grad, atoms, codes.indices) if ctx.needs_input_grad[0] else None
        grad_atoms = None
        if ctx.needs_input_grad[1]:
            grad_atoms = scatter_rows(values, codes.by_latent, grad, len(atoms))
        return grad_values, grad_atoms, None


def gathered_dots(
    dense: Float[Tensor, "n d"], rows: Float[Tensor, "s d"], indices: Int[Tensor, "n k"]
) -> Float[Tensor, "n k"]:
    """Dot products of each row with the k rows it points at, a few thousand rows at a time."""
    out = dense.new_empty(indices.shape)
    step = max(1, 2**22 // max(1, indices.shape[1] * rows.shape[1]))  # 16 MB of gathered rows
    for i in range(0, len(dense), step):
        chosen = rows[indices[i : i + step]]  # [c k d]
        out[i : i + step] = torch.bmm(chosen, dense[i : i + step, :, None])[:, :, 0]
    return out


def decode(codes: Codes, atoms: Float[Tensor, "s d"]) -> Float[Tensor, "n d"]:
    """codes @ atoms, differentiable in the code values and in the atoms."""
    out: Tensor = _Decode.apply(codes.values, atoms, codes)
    return out


class _Select(torch.autograd.Function):
    """Pre-activations that were computed without gradient get one at the chosen entries."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, codes: Codes) -> Tensor:
        ctx.codes = codes
        ctx.save_for_backward(x, weight)
        return codes.values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        codes: Codes = ctx.codes
        grad = grad * (codes.values > 0)
        grad_x = gather_sum(grad, codes.indices, weight) if ctx.needs_input_grad[0] else None
        grad_weight = scatter_rows(grad, codes.by_latent, x, len(weight))
        grad_bias = grad.new_zeros(len(weight)).index_add_(
            0, codes.indices.flatten(), grad.flatten()
        )
        return grad_x, grad_weight, grad_bias, None


def attach(
    x: Float[Tensor, "n d"], weight: Float[Tensor, "s d"], bias: Float[Tensor, " s"], codes: Codes
) -> Codes:
    """Codes chosen from relu(x @ weight.T + bias) without autograd, made differentiable.

    The gradient flows through the active entries only, as the dense form's would; nothing of size
    [n s] is kept for the backward pass.
    """
    values: Tensor = _Select.apply(x, weight, bias, codes)
    return codes.with_values(values)
