"""One autograd function for adapted projections of one input: y_i = W_i x + b_i + s_i B_i A_i x, for frozen W_i.

Two ways, of the same numbers up to rounding. Fused: both low-rank products are added in place to the frozen one.
Merged: `W + s B A` is formed for one product, dropped, and formed again in the backward. Either way the backward
differentiates the kept directions alone, keeps little but x for it, and forms nothing of the size of an output beside
the output's own gradient. Projections that share x read it once for all, forward and backward, and their gradients of
x are summed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmlora.kernels.cost import Way
from rmlora.kernels.recipes import can_remake, remake
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


class Projection(NamedTuple):
    """One adapted projection.

    Attributes:
        plan: scale, way and dtype.
        weight: W, `(d_out, d_in)`, or `(d_in, d_out)` where the plan says so.
        bias: b, `(d_out,)`, or None.
        A: `(r, d_in)`.
        B: `(d_out, r)`.
        rows: int64 `(k,)`, the rows of A that get a gradient, each once; None for all. The gradient of the others is
            zero and is never computed.
        columns: the same for the columns of B.
    """

    plan: Plan
    weight: Tensor
    bias: Tensor | None
    A: Tensor
    B: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None

    @property
    def transposed(self) -> Tensor:
        """What the input is multiplied by, `(d_in, d_out)`: W, or a copy of it with the low-rank product added."""
        plan, weight = self.plan, self.weight
        if plan.way == "fused":
            return weight if plan.is_transposed else weight.t()
        if plan.is_transposed:
            return torch.addmm(weight, self.A.t(), self.B.t(), alpha=plan.scale)
        return torch.addmm(weight, self.B, self.A, alpha=plan.scale).t()

    def cast(self) -> Projection:
        """Return the same in the plan's dtype."""
        dtype = self.plan.dtype
        if self.weight.dtype == self.A.dtype == self.B.dtype == dtype:
            return self
        bias = None if self.bias is None else self.bias.to(dtype)
        tensors = self.weight.to(dtype), bias, self.A.to(dtype), self.B.to(dtype)
        return Projection(self.plan, *tensors, self.rows, self.columns)


def project(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """Compute `x (W + s B A)^T + b` for each projection, differentiable by x, A, B and b, and not by W.

    Args:
        x: `(..., d_in)`; any leading shape, contiguous or not.
        projections: at least one, all of plans with one dtype.

    Returns:
        for each, `(..., d_out)` in the plans' dtype; the gradient of x flows through all directions.

    Example:
        >>> x, W, A, B = torch.ones(2, 3), torch.eye(3), torch.ones(1, 3), torch.ones(3, 1)
        >>> (y,) = project(x, [Projection(Plan(0.5, "fused", False, torch.float32), W, None, A, B)])
        >>> y[0]
        tensor([2.5000, 2.5000, 2.5000])

    Source:
        RM-LoRA, arXiv:2407.12074, Sec. 4.3, proposes not to compute the gradients of masked positions.
    """
    cast = [projection.cast() for projection in projections]
    flat = [tensor for projection in cast for tensor in projection[1:]]
    plans = tuple(projection.plan for projection in cast)
    maker = x.grad_fn if can_remake(x) else None
    return _Projections.apply(plans, maker, x.to(plans[0].dtype), *flat)  # type: ignore[no-any-return,no-untyped-call]


class _Projections(torch.autograd.Function):
    """Forward and backward of `project`, all tensors in the plans' dtype."""

    @staticmethod
    def forward(
        ctx: Any, plans: tuple[Plan, ...], maker: Any, x: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Compute the outputs; keep x or its maker, what lives anyway, and fused the `(tokens, r)` between A and B."""
        ctx.set_materialize_grads(False)
        all_of = _gather(plans, tensors)
        flat = x.reshape(-1, x.shape[-1])
        inner = _read(flat, [p.A if p.plan.way == "fused" else None for p in all_of])
        outputs = []
        for p, between in zip(all_of, inner, strict=True):
            y = flat @ p.transposed if p.bias is None else torch.addmm(p.bias, flat, p.transposed)
            if between is not None:
                y.addmm_(between, p.B.t(), alpha=p.plan.scale)
            outputs.append(y.view(*x.shape[:-1], y.shape[-1]))
        ctx.plans, ctx.maker = plans, maker
        ctx.save_for_backward(None if maker is not None else x, *tensors, *inner)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Compute gradients of x, the biases, and the kept directions of A and B."""
        num, saved = len(ctx.plans), ctx.saved_tensors
        x, all_of, inner = saved[0], _gather(ctx.plans, saved[1:-num]), saved[-num:]
        x = remake(ctx.maker).to(ctx.plans[0].dtype) if x is None else x
        needs_x, needed = ctx.needs_input_grad[2], [ctx.needs_input_grad[3 + 6 * i : 9 + 6 * i] for i in range(num)]
        flat = x.reshape(-1, x.shape[-1])
        g = [None if grad is None else grad.reshape(-1, grad.shape[-1]) for grad in grads]
        dx, outer = _back_through(all_of, g, needs_x)
        reads = [needs[3] and grad is not None for needs, grad in zip(needed, g, strict=True)]
        between = _kept_between(all_of, inner, flat, reads)
        dA = _sum([left if needs[2] else None for left, needs in zip(outer, needed, strict=True)], flat)
        found: list[Tensor | None] = []
        for p, grad, rows_of_dA, h, needs in zip(all_of, g, dA, between, needed, strict=True):
            db = grad.sum(0) if needs[1] and grad is not None and p.bias is not None else None
            own_dA = None if rows_of_dA is None else spread_rows(rows_of_dA, p.rows, p.A)
            own_dB = None if h is None or grad is None else sum_outer(p.plan.scale * h, grad)
            own_dB = None if own_dB is None else spread_rows(own_dB, p.columns, p.B.t()).t()
            found += [None, db, own_dA, own_dB, None, None]
        return None, None, None if dx is None else dx.view(x.shape), *found


def _gather(plans: Sequence[Plan], tensors: Sequence[Tensor | None]) -> list[Projection]:
    return [Projection(plan, *tensors[6 * i : 6 * i + 6]) for i, plan in enumerate(plans)]  # type: ignore[arg-type]


def _back_through(
    projections: Sequence[Projection], g: Sequence[Tensor | None], needs_x: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradient of the input `(tokens, d_in)`, and of each its `s g B` of the kept rows `(tokens, k)`."""
    dx: Tensor | None = None
    outer: list[Tensor | None] = [None] * len(projections)
    for i, (p, grad) in enumerate(zip(projections, g, strict=True)):
        if grad is None:
            continue
        passes = needs_x and p.plan.way == "fused"
        own = read_through(grad, p.plan.scale * choose_rows(p.B.t(), None if passes else p.rows))
        outer[i] = own.index_select(1, p.rows) if passes and p.rows is not None else own
        if needs_x:
            dx = grad @ p.transposed.t() if dx is None else dx.addmm_(grad, p.transposed.t())
        if passes and dx is not None:
            dx = dx.addmm_(own, p.A)
    return dx, outer


def _kept_between(
    projections: Sequence[Projection], inner: Sequence[Tensor | None], flat: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Of each what lies between A and B for the kept columns, `(tokens, k)`: chosen where it is known, or read anew."""
    between: list[Tensor | None] = [None] * len(projections)
    missing: list[Tensor | None] = [None] * len(projections)
    for i, (p, known) in enumerate(zip(projections, inner, strict=True)):
        if not needed[i]:
            continue
        if known is None or torch.is_grad_enabled():  # to be differentiated again, it must depend on its inputs
            missing[i] = choose_rows(p.A, p.columns)
        else:
            between[i] = known if p.columns is None else known.index_select(1, p.columns)
    return [old if new is None else new for old, new in zip(between, _read(flat, missing), strict=True)]


def _read(flat: Tensor, factors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """`flat A^T` of every A given, in one product."""
    given = [A for A in factors if A is not None]
    if len(given) < 2:
        return [None if A is None else read_through(flat, A) for A in factors]
    parts = iter(torch.split(read_through(flat, torch.cat(given)), [len(A) for A in given], dim=1))
    return [None if A is None else next(parts) for A in factors]


def _sum(lefts: Sequence[Tensor | None], flat: Tensor) -> list[Tensor | None]:
    """`left^T flat` of every left given, in one product."""
    given = [left for left in lefts if left is not None]
    if len(given) < 2:
        return [None if left is None else sum_outer(left, flat) for left in lefts]
    parts = iter(torch.split(sum_outer(torch.cat(given, dim=1), flat), [left.shape[1] for left in given]))
    return [None if left is None else next(parts) for left in lefts]
