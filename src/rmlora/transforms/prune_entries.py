"""PRILoRA's pruning: entries of A that are small, and meet small inputs, are set to zero while training goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rmlora.errors import MethodError
from rmlora.leaves import gradient_of
from rmlora.pairs import Factors, Stack
from rmlora.schedules import Scalar, value_at
from rmlora.transform import Context, ForwardContext, Moments, State, Transform

Within = Literal["row", "matrix"]


def prune_entries(A: Tensor, norms: Tensor, share: float, within: Within = "row") -> Tensor:
    """Choose the entries of A to keep: all but a share of those with the smallest `|A_ij| norm_j`.

    Args:
        A: `(n, r, d_in)`.
        norms: `(n, d_in)`, how large each input feature has been, >= 0.
        share: of the entries that are dropped, 0 to 1, rounded down to a whole number.
        within: "row" drops that share of every row of A, "matrix" of A as a whole.

    Returns:
        boolean `(n, r, d_in)`; of equal entries the first are dropped.

    Raises:
        MethodError: `within` is not one of the names above.

    Example:
        >>> A, norms = torch.tensor([[[1.0, -3.0, 2.0, 0.5]]]), torch.tensor([[9.0, 1.0, 1.0, 1.0]])
        >>> prune_entries(A, norms, 0.5)
        tensor([[[ True,  True, False, False]]])

    Source:
        PRILoRA, arXiv:2401.11316, abstract: pruning by the magnitude of weights and accumulated statistics of the
        input. Deviation: the full text was not at hand; that product, and what is compared with what, are our reading.
    """
    _check("within", within, Within)
    wide = torch.promote_types(A.dtype, torch.float32)
    scores = A.abs().to(wide) * norms.unsqueeze(1).to(wide)
    rows = scores if within == "row" else scores.flatten(1)
    order = rows.argsort(dim=-1, stable=True)
    dropped = order[..., : math.floor(share * rows.shape[-1])]
    return torch.ones_like(rows, dtype=torch.bool).scatter_(-1, dropped, False).view_as(A)


class _Measure(torch.autograd.Function):
    """The identity of x; backward gives `energy` the sum of squares of each feature as its gradient.

    So what passes through is summed over micro-batches as gradients are, once under checkpointing, and nothing is
    written in the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, energy: Tensor, dim: int) -> Tensor:
        """Keep x, which the product with A keeps anyway."""
        ctx.save_for_backward(x)
        ctx.dim, ctx.dtype = dim, energy.dtype
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradient as it is, and the squares, whatever the loss was multiplied by."""
        (x,) = ctx.saved_tensors
        others = [i for i in range(x.dim()) if i != x.dim() + ctx.dim]
        return grad, x.to(ctx.dtype).square().sum(dim=others), None


@dataclass(frozen=True)
class PruneEntries(Transform):
    """Link: every `interval` optimizer steps, set the share of A's entries that matter least to zero.

    What matters is `|A_ij| norm_j`, where norm_j is a running mean, over optimizer steps, of the 2-norm of input
    feature j in all tokens of a step, behind `lora_dropout`. After a pruning the entries learn again from zero, so that
    one pruned too early comes back; with `regrow=False` they stay zero until the next pruning chooses anew, which then
    finds them the smallest. The optimizer's moments are left alone. Zeros of A are stored as zeros.

    Attributes:
        share: of A's entries that a pruning zeroes, 0 <= share < 1, or a schedule; 0 skips the link.
        interval: optimizer steps between prunings, >= 1.
        decay: of the running mean, 0 <= decay < 1; 0 takes the latest step alone.
        within: "row" prunes the share of every row of A, "matrix" of A as a whole.
        regrow: whether pruned entries learn between prunings.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> PruneEntries(0.0).hooks()
        frozenset()

    Source:
        PRILoRA, arXiv:2401.11316, abstract: pruning throughout training, by the magnitude of weights and accumulated
        statistics of the input. That A is what is pruned, by `|A_ij| norm_j`, is our reading, and share, interval,
        decay, what is compared and that entries regrow are our choice: the full text was not at hand.
    """

    gathers: ClassVar[frozenset[str]] = frozenset({"energy"})

    share: Scalar = 0.5
    interval: int = 40
    decay: float = 0.9
    within: Within = "row"
    regrow: bool = True

    def __post_init__(self) -> None:
        if not callable(self.share) and not 0.0 <= self.share < 1.0:
            raise MethodError(f"share={self.share}; it lies in [0, 1) (0 prunes nothing)")
        if not self.interval >= 1:
            raise MethodError(f"interval={self.interval}; it counts optimizer steps between prunings, >= 1")
        if not 0.0 <= self.decay < 1.0:
            raise MethodError(f"decay={self.decay}; it lies in [0, 1)")
        _check("within", self.within, Within)

    def hooks(self) -> frozenset[str]:
        """`inputs` and `project`, unless the share is the number 0."""
        is_off = not callable(self.share) and self.share == 0.0
        return frozenset() if is_off else frozenset({"inputs", "project"})

    def init(self, pairs: Sequence[Stack]) -> State:
        """Start from norms of zero; `energy` is a leaf `(n, d_in)` that gathers squares, in float32 at least."""
        return tuple(self._fresh(stack) for stack in pairs) if self.hooks() else super().init(pairs)

    def inputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Pass x on as it is, and let backward measure it."""
        if not ctx.training or not torch.is_grad_enabled():
            return x
        measured: Tensor = _Measure.apply(x, state["energy"], ctx.dim)  # type: ignore[no-untyped-call]
        return measured

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Take what backward measured into the running mean; prune if it is time."""
        share, latest, moved = value_at(self.share, ctx.step), [], []
        for tensors, factors in zip(state, after, strict=True):
            energy = gradient_of(tensors["energy"], 1.0)  # no loss scale reaches it
            norms = torch.lerp(energy.sqrt(), tensors["norms"], self.decay)
            now = {"energy": torch.zeros_like(energy).requires_grad_(), "norms": norms}
            kept = tensors.get("kept")
            if (ctx.step + 1) % self.interval == 0:
                # A convolution's features are channels: neighbouring entries of a row share one.
                wide = norms.repeat_interleave(factors.A.shape[2] // norms.shape[1], dim=1)
                chosen = prune_entries(factors.A, wide, share, self.within)
                factors = Factors(torch.where(chosen, factors.A, 0.0), factors.B)
                kept = None if kept is None else chosen
            if kept is not None:
                factors = Factors(torch.where(kept, factors.A, 0.0), factors.B)
                now["kept"] = kept
            latest.append(now)
            moved.append(factors)
        return moved, moments[1], tuple(latest)

    def report(self, state: State, pairs: Sequence[Stack]) -> Sequence[dict[str, Tensor]]:
        """Tell `zeros`, the entries of A that are zero now."""
        return tuple({"zeros": (stack.A == 0).sum(dim=(1, 2))} if self.hooks() else {} for stack in pairs)

    def _fresh(self, stack: Stack) -> dict[str, Tensor]:
        parameter, A = stack.pairs[0].parameters[0], stack.pairs[0].A
        dtype = torch.promote_types(A.dtype, torch.float32)
        zeros = torch.zeros(len(stack), parameter.shape[1], dtype=dtype, device=A.device)
        fresh = {"energy": zeros.requires_grad_(), "norms": torch.zeros_like(zeros)}
        if not self.regrow:
            fresh["kept"] = torch.ones(len(stack), *A.shape, dtype=torch.bool, device=A.device)
        return fresh


def _check(field: str, value: str, names: object) -> None:
    if value not in get_args(names):
        raise MethodError(f'{field}="{value}" is not one of {list(get_args(names))}')
