"""One autograd function for an adapted projection: y = W0 x + b + s B A x, for a frozen W0.

Two ways, of the same numbers up to rounding. Fused: both low-rank products are added in place to the frozen one.
Merged: `W0 + s B A` is formed for one product, dropped, and formed again in the backward. Either way the backward
differentiates the kept directions alone, keeps nothing but x for it, and forms nothing of the size of the output beside
the output's own gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmlora.kernels.cost import Way
from rmlora.kernels.rows import choose_rows, spread_rows
from rmlora.kernels.skinny import read_through, sum_outer


@dataclass(frozen=True)
class Plan:
    """What about a projection is not a tensor.

    Attributes:
        scale: s.
        way: "fused" or "merged".
        is_transposed: whether the frozen weight is stored `(d_in, d_out)`, as transformers' `Conv1D` does.
        dtype: what products are computed in.
    """

    scale: float
    way: Way
    is_transposed: bool
    dtype: torch.dtype


def project(
    plan: Plan,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """Compute `x (W0 + s B A)^T + b`, differentiable by x, A, B and b, and not by W0.

    Args:
        plan: scale, way and dtype.
        x: `(..., d_in)`; any leading shape, contiguous or not.
        weight: W0, `(d_out, d_in)`, or `(d_in, d_out)` where the plan says so.
        bias: b, `(d_out,)`, or None.
        A: `(r, d_in)`.
        B: `(d_out, r)`.
        rows: int64 `(k,)`, the rows of A that get a gradient, each once; None for all. The gradient of the others is
            zero and is never computed.
        columns: the same for the columns of B.

    Returns:
        `(..., d_out)` in the plan's dtype; the gradient of x flows through all directions.

    Example:
        >>> x, W, A, B = torch.ones(2, 3), torch.eye(3), torch.ones(1, 3), torch.ones(3, 1)
        >>> project(Plan(0.5, "fused", False, torch.float32), x, W, None, A, B)[0]
        tensor([2.5000, 2.5000, 2.5000])

    Source:
        RM-LoRA, arXiv:2407.12074, Sec. 4.3, proposes not to compute the gradients of masked positions.
    """
    if not x.dtype == weight.dtype == A.dtype == B.dtype == plan.dtype:
        x, weight, A, B = (tensor.to(plan.dtype) for tensor in (x, weight, A, B))
        bias = None if bias is None else bias.to(plan.dtype)
    return _Projection.apply(plan, x, weight, bias, A, B, rows, columns)  # type: ignore[no-any-return,no-untyped-call]


class _Projection(torch.autograd.Function):
    """Forward and backward of `project`, all tensors in the plan's dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        rows: Tensor | None,
        columns: Tensor | None,
    ) -> Tensor:
        """Compute the output; keep x, what lives anyway, and fused the `(tokens, r)` between A and B."""
        flat = x.reshape(-1, x.shape[-1])
        inner = read_through(flat, A) if plan.way == "fused" else None
        transposed = _transposed(plan, weight, A, B)
        y = flat @ transposed if bias is None else torch.addmm(bias, flat, transposed)
        if inner is not None:
            y.addmm_(inner, B.t(), alpha=plan.scale)
        ctx.plan, ctx.has_bias = plan, bias is not None
        ctx.save_for_backward(x, weight, A, B, rows, columns, inner)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute gradients of x, the bias, and the kept directions of A and B."""
        x, weight, A, B, rows, columns, inner = ctx.saved_tensors
        _, needs_x, _, needs_bias, needs_A, needs_B, _, _ = ctx.needs_input_grad
        g, flat = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        dx, outer = _back_through(ctx.plan, g, weight, A, B, rows, needs_x)
        dA = dB = db = None
        if needs_A:
            dA = spread_rows(sum_outer(outer, flat), rows, A)
        if needs_B:
            if inner is None or torch.is_grad_enabled():  # to be differentiated again, it must depend on its inputs
                inner = read_through(flat, choose_rows(A, columns))
            elif columns is not None:
                inner = inner.index_select(1, columns)
            dB = spread_rows(sum_outer(ctx.plan.scale * inner, g), columns, B.t()).t()
        if needs_bias and ctx.has_bias:
            db = g.sum(0)
        return None, None if dx is None else dx.view(x.shape), None, db, dA, dB, None, None


def _transposed(plan: Plan, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """What the input is multiplied by, `(d_in, d_out)`: W0, or with the low-rank product added to a copy of it."""
    if plan.way == "fused":
        return weight if plan.is_transposed else weight.t()
    if plan.is_transposed:
        return torch.addmm(weight, A.t(), B.t(), alpha=plan.scale)
    return torch.addmm(weight, B, A, alpha=plan.scale).t()


def _back_through(
    plan: Plan, g: Tensor, weight: Tensor, A: Tensor, B: Tensor, rows: Tensor | None, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    """The gradient of the input `(tokens, d_in)`, and `s g B` of the kept rows `(tokens, k)`."""
    if plan.way == "merged" or not needs_x:
        outer = read_through(g, plan.scale * choose_rows(B.t(), rows))
        return (g @ _transposed(plan, weight, A, B).t() if needs_x else None), outer
    outer = read_through(g, plan.scale * B.t().contiguous())
    dx = (g @ _transposed(plan, weight, A, B).t()).addmm_(outer, A)
    return dx, outer if rows is None else outer.index_select(1, rows)
