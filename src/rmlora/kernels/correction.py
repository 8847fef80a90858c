"""One autograd function for s B A x on top of what a frozen module gave: for bases whose own forward must run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmlora.kernels.recipes import can_remake, remake
from rmlora.kernels.rows import choose_rows, spread_rows
from rmlora.kernels.skinny import read_through, sum_outer


def correct(
    scale: float,
    output: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """Add the low-rank product to the output of a base that may be quantised, in the output's dtype.

    Args:
        scale: s.
        output: `(..., d_out)`, what the base gave.
        x: `(..., d_in)`, what the base was given.
        A: `(r, d_in)`.
        B: `(d_out, r)`.
        rows: int64 `(k,)`, the rows of A that get a gradient; None for all.
        columns: the same for the columns of B.

    Returns:
        `output + s x A^T B^T`, as one new tensor.

    Example:
        >>> correct(0.5, torch.zeros(1, 2), torch.ones(1, 3), torch.ones(1, 3), torch.ones(2, 1))
        tensor([[1.5000, 1.5000]])
    """
    maker = x.grad_fn if can_remake(x) else None
    x, A, B = (tensor.to(output.dtype) for tensor in (x, A, B))
    return _Correction.apply(scale, maker, output, x, A, B, rows, columns)  # type: ignore[no-any-return,no-untyped-call]


class _Correction(torch.autograd.Function):
    """Forward and backward of `correct`."""

    @staticmethod
    def forward(
        ctx: Any,
        scale: float,
        maker: Any,
        output: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        rows: Tensor | None,
        columns: Tensor | None,
    ) -> Tensor:
        """Compute the sum; keep x or what made it, the factors, and the `(tokens, r)` between them."""
        inner = read_through(x.reshape(-1, x.shape[-1]), A)
        y = torch.addmm(output.reshape(-1, output.shape[-1]), inner, B.t(), alpha=scale)
        ctx.scale, ctx.maker = scale, maker
        ctx.save_for_backward(None if maker is not None else x, A, B, rows, columns, inner)
        return y.view(output.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute gradients of the base's output, of x, and of the kept directions."""
        x, A, B, rows, columns, inner = ctx.saved_tensors
        x = remake(ctx.maker).to(A.dtype) if x is None else x
        _, _, needs_output, needs_x, needs_A, needs_B, _, _ = ctx.needs_input_grad
        g, flat = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        whole = needs_x or rows is None
        outer = read_through(g, ctx.scale * choose_rows(B.t(), None if whole else rows))
        dx = (outer @ A).view(x.shape) if needs_x else None
        dA = dB = None
        if needs_A:
            chosen = outer.index_select(1, rows) if whole and rows is not None else outer
            dA = spread_rows(sum_outer(chosen, flat), rows, A)
        if needs_B:
            if torch.is_grad_enabled():  # to be differentiated again, it must depend on its inputs
                inner = read_through(flat, A)
            inner = inner if columns is None else inner.index_select(1, columns)
            dB = spread_rows(sum_outer(ctx.scale * inner, g), columns, B.t()).t()
        return None, None, grad if needs_output else None, dx, dA, dB, None, None
