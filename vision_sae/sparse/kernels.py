"""The fast paths: products with sparse codes, forward and backward, never dense in [n s].

Two primitives serve them all: a weighted sum of gathered rows, and dot products of gathered rows.
With G the sparse [n s] gradient of the codes, dW = G^T x is the first, read along latents; the
gradient of a code is the second. Each has a slow obvious twin in tests/core/test_kernels.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.sparse.codes import AnyCodes, Codes, Support


def gather_sum(
    values: Float[Tensor, " e"], support: Support, matrix: Float[Tensor, "s d"]
) -> Float[Tensor, "n d"]:
    """Codes times a matrix: the weighted sum of the rows that are active."""
    return _bags(support.indices, matrix, support.offsets, values)


def scatter_sum(
    values: Float[Tensor, " e"], support: Support, dense: Float[Tensor, "n d"]
) -> Float[Tensor, "s d"]:
    """Transposed codes times a matrix: the weighted sum of each latent's rows."""
    by = support.by_latent
    return _bags(by.rows, dense, by.start, values[by.order])


def matrix_gradient(
    values: Float[Tensor, " e"], support: Support, dense: Float[Tensor, "n d"]
) -> Tensor:
    """scatter_sum, [s d]; row-sparse if the support asks for it."""
    if not support.row_gradients:
        return scatter_sum(values, support, dense)
    by = support.by_latent
    latents = by.start.diff().nonzero()[:, 0]
    start = torch.cat([by.start[latents], by.start[-1:]])
    rows = _bags(by.rows, dense, start, values[by.order])
    size = (support.width, dense.shape[1])
    return torch.sparse_coo_tensor(
        latents[None], rows, size, is_coalesced=True, check_invariants=False
    )


def _bags(indices: Tensor, matrix: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(
        indices,
        matrix,
        offsets,
        per_sample_weights=weights.to(matrix.dtype),
        mode="sum",
        include_last_offset=True,
    )


def entry_dots(
    dense: Float[Tensor, "n d"], matrix: Float[Tensor, "s d"], support: Support
) -> Float[Tensor, " e"]:
    """The product dense @ matrix.T at the entries of the support only."""
    if not len(support.indices):
        return dense.new_zeros(0)
    out: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        dense.contiguous(), matrix, support.indices, support.offsets[:-1], support.rows, 0
    )
    return out


def latent_sum(values: Float[Tensor, " e"], support: Support) -> Float[Tensor, " s"]:
    """The sum of the entries of each latent."""
    return values.new_zeros(support.width).index_add_(0, support.indices, values)


class _Decode(torch.autograd.Function):
    """values [e], atoms [s d] -> sum of atoms [n d]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, atoms: Tensor, support: Support) -> Tensor:
        ctx.support = support
        ctx.save_for_backward(values, atoms)
        return gather_sum(values, support, atoms)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, atoms = ctx.saved_tensors
        grad = grad.contiguous()
        to_values, to_atoms, _ = ctx.needs_input_grad
        return (
            entry_dots(grad, atoms, ctx.support) if to_values else None,
            matrix_gradient(values, ctx.support, grad) if to_atoms else None,
            None,
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def decode(codes: AnyCodes, atoms: Float[Tensor, "s d"]) -> Float[Tensor, "n d"]:
    """codes @ atoms, differentiable in the code values and in the atoms."""
    if not isinstance(codes, Codes):
        return codes.values @ atoms
    out: Tensor = _Decode.apply(codes.values, atoms, codes.support)
    return out


class _Project(torch.autograd.Function):
    """Pre-activations [e] that were computed without gradient get one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        centre: Tensor | None,
        z: Tensor,
        support: Support,
    ) -> Tensor:
        ctx.support = support
        ctx.save_for_backward(x, weight)
        return z.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias, to_centre, _, _ = ctx.needs_input_grad
        of_latents = latent_sum(grad, ctx.support)
        return (
            gather_sum(grad, ctx.support, weight) if to_x else None,
            matrix_gradient(grad, ctx.support, x) if to_weight else None,
            of_latents if to_bias else None,
            -(of_latents @ weight) if to_centre else None,  # the sum over rows of to_x, far cheaper
            None,
            None,
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def project(
    x: Float[Tensor, "n d"],
    weight: Float[Tensor, "s d"],
    bias: Float[Tensor, " s"],
    support: Support,
    z: Float[Tensor, " e"] | None = None,
    centre: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, " e"]:
    """x @ weight.T + bias at the entries of the support, differentiable in all three.

    `z` are the numbers where they are known already. `centre` was taken off x without gradient and
    gets its gradient here. Nothing of size [n s] is kept.
    """
    with torch.no_grad():
        if z is None:
            z = entry_dots(x, weight, support) + bias[support.indices]
    out: Tensor = _Project.apply(x, weight, bias, centre, z, support)
    return out
