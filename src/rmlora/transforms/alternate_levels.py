"""BiLoRA: values between A and B learn on one part of the training set, A and B on another, in turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmlora.draws import draw_normals
from rmlora.errors import MethodError
from rmlora.leaves import adam_state, adam_step, gradient_of
from rmlora.pairs import Factors, Kept, Stack
from rmlora.schedules import Scalar, value_at
from rmlora.stacking import refuse_used
from rmlora.transform import Context, ForwardContext, Moments, State, Transform
from rmlora.transforms.add_orthogonality import add_orthogonality
from rmlora.transforms.mask_directions import Policy, hold_still

TWO_PARTS = "two parts of the training set"
"""What the method needs beside being attached: batches of one part or the other, in step with it."""

_STREAM_A, _STREAM_B = 3, 4


def is_upper(step: int, every: int) -> bool:
    """Whether an optimizer step is the values' turn (the second part of the data), not that of A and B (the first).

    Args:
        step: optimizer steps completed before it.
        every: one step in so many is the values', the last of each round.

    Example:
        >>> [is_upper(step, every=3) for step in range(6)]
        [False, False, True, False, False, True]
    """
    return step % every == every - 1


@dataclass(frozen=True)
class AlternateLevels(Transform):
    """Link: put learnt values between A and B, and let them learn in turn with A and B, on other data.

    The forward pass is `y = W0 x + s B (values * (A x))`. One optimizer step in `every` moves the values alone, by Adam
    at the adapter's learning rate; the others move A and B alone, under an orthogonality penalty, and the optimizer
    does not touch them in between. The batches of the values' steps come from a part of the training set that A and B
    never see: `rmlora.TwoPartBatches` makes them, reading `every` and `share` from the method. What learns beside the
    adapter (a head) learns at every step.

    Training begins with values 0 and with A and B random, rows and columns of unit length on average. Values are state
    of the method: they resume with the optimizer. Folding multiplies them into A.

    Attributes:
        weight: strength of the penalty `||A A^T - I||_F^2 + ||B^T B - I||_F^2`, summed over modules, >= 0, or a
            schedule; 0 adds none.
        every: one optimizer step in so many is the values', >= 2.
        share: share of the training examples that the values learn from, in (0, 1); for whoever makes the batches.

    Raises:
        MethodError: a value is out of range; when attached, B is not zero: the adapter is trained already.

    Example:
        >>> AlternateLevels(every=5).needs
        frozenset({'two parts of the training set'})

    Source:
        BiLoRA, arXiv:2403.13037. Deviations: first order, without the hypergradient through the step of A and B; values
        are free real numbers (no softmax, no binary ones); the head learns on both parts; initial factors are hashes of
        (seed, module, entry); Adam's count of steps advances for A and B while they stand still.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TWO_PARTS})

    weight: Scalar = 0.1
    every: int = 2
    share: float = 0.2

    def __post_init__(self) -> None:
        if not callable(self.weight) and not 0.0 <= self.weight < math.inf:
            raise MethodError(f"weight={self.weight}; it must be finite and >= 0 (0 switches the penalty off)")
        if not self.every >= 2:
            raise MethodError(f"every={self.every}; one optimizer step in so many is the values', >= 2")
        if not 0.0 < self.share < 1.0:
            raise MethodError(f"share={self.share}; it is the share of examples the values learn from, > 0 and < 1")

    def init(self, pairs: Sequence[Stack]) -> State:
        """Begin with values 0, a leaf of autograd `(n, r)` per stack."""
        return tuple(self._fresh(stack) for stack in pairs)

    def begin(self, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Draw A and B, rows and columns of unit length on average, unless there is an adapter to lose."""
        refuse_used(pairs, factors, "BiLoRA begins with random factors of its own")
        return tuple(map(_random, pairs, factors))

    def ranks(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Multiply what A gives by the values."""
        shape = [1] * x.dim()
        shape[ctx.dim] = -1
        return x * state["values"].to(x.dtype).view(shape)

    def keep(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Keep no direction at the values' steps, and all at the others."""
        return tuple(_none_of(stack) if is_upper(ctx.step, self.every) else None for stack in pairs)

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Add the penalty's gradient at the steps of A and B."""
        weight = value_at(self.weight, ctx.step)
        if weight == 0.0 or is_upper(ctx.step, self.every):
            return grads, state
        strength = weight * ctx.loss_scale
        return [add_orthogonality(g, p.factors, strength) for g, p in zip(grads, pairs, strict=True)], state

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """At the values' steps move them and hold A and B still; at the others drop the gradient they received."""
        if not is_upper(ctx.step, self.every):
            return after, moments[1], tuple(_renewed(tensors) for tensors in state)
        moved = []
        for tensors, (rate, _) in zip(state, ctx.lr, strict=True):
            grad = gradient_of(tensors["values"], ctx.leaf_scale)
            values, memory = adam_step(tensors["values"].detach(), grad, tensors, rate)
            moved.append({"values": values.requires_grad_(), **memory})
        policy: Policy = "update" if ctx.shared_moments else "state"
        held = hold_still([_none_of(stack) for stack in pairs], policy, before, after, moments, ctx)
        return *held, tuple(moved)

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Multiply the values into the rows of A."""
        values = [tensors["values"].detach().unsqueeze(2) for tensors in state]
        return [Factors((f.A * value).to(f.A.dtype), f.B) for f, value in zip(factors, values, strict=True)]

    def _fresh(self, stack: Stack) -> dict[str, Tensor]:
        A = stack.pairs[0].A
        dtype = torch.promote_types(A.dtype, torch.float32)
        values = torch.zeros(len(stack), stack.r, dtype=dtype, device=A.device)
        return {"values": values.requires_grad_(), **adam_state(values)}


def _random(stack: Stack, factors: Factors) -> Factors:
    """Normal numbers of variance 1 / d_in in A and 1 / d_out in B."""
    sides = []
    for stream, value, size in ((_STREAM_A, factors.A, factors.A.shape[2]), (_STREAM_B, factors.B, factors.B.shape[1])):
        drawn = draw_normals(stack.keys, value[0].numel(), stack.seed, stream) / math.sqrt(size)
        sides.append(drawn.view(value.shape).to(value))
    return Factors(*sides)


def _none_of(stack: Stack) -> Kept:
    none = torch.zeros(len(stack), stack.r, dtype=torch.bool, device=stack.keys.device)
    return Kept(none, none, 0)


def _renewed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same state, its leaf without a gradient."""
    return tensors | {"values": tensors["values"].detach().clone().requires_grad_()}
