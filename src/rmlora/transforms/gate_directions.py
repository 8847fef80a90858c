"""SoRA's gate: a learnt number on every direction, driven to exactly zero by a proximal step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rmlora.draws import draw_normals
from rmlora.errors import MethodError
from rmlora.leaves import adam_state, adam_step, gradient_of
from rmlora.pairs import Factors, Stack
from rmlora.schedules import Scalar, value_at
from rmlora.transform import Context, ForwardContext, Moments, State, Transform

Prox = Literal["soft", "released"]
Start = Literal["normal", "ones"]


def shrink(gate: Tensor, threshold: float, prox: Prox = "soft") -> Tensor:
    """Pull every entry towards zero by `threshold`, and set what would cross zero to exactly zero.

    "soft" is the proximal operator of the L1 norm, `sign(g) max(|g| - threshold, 0)`. "released" is what the authors'
    code computes: entries are shrunk in place first and compared with the threshold again afterwards, so that all below
    twice the threshold become zero, and a closed gate needs a step of that length to open again.

    Args:
        gate: any shape.
        threshold: in units of the gate, >= 0; 0 returns the gate as it is.
        prox: "soft" or "released".

    Returns:
        A new tensor; nothing is written in place.

    Example:
        >>> gate = torch.tensor([-3.0, -1.5, 0.5, 2.0])
        >>> shrink(gate, 1.0), shrink(gate, 1.0, "released")
        (tensor([-2.0000, -0.5000,  0.0000,  1.0000]), tensor([-2., 0., 0., 1.]))

    Source:
        SoRA, arXiv:2311.11696, Sec. 3; "released": TsinghuaC3I/SoRA, src/sparse_optimizer.py, `SparseAdamW.step`.
    """
    if threshold == 0.0:
        return gate
    if prox == "soft":
        return torch.where(gate.abs() > threshold, gate - threshold * gate.sign(), 0.0)
    shrunk = torch.where(gate.abs() > threshold, gate - threshold * gate.sign(), gate)
    return torch.where(shrunk.abs() < threshold, 0.0, shrunk)


@dataclass(frozen=True)
class GateDirections(Transform):
    """Link: multiply direction i by a learnt gate, which a proximal step drives to exactly zero.

    The forward pass is `y = W0 x + s B (g * (A x))`. After the optimizer's step on A and B the gates take one of their
    own, Adam at the adapter's learning rate, and are then shrunk by `threshold`. A gate at zero shuts its direction;
    under "soft" any gradient opens it again. Folding multiplies the gates into A, exactly.

    The gates live in the state, not in the model: they resume with the optimizer, are averaged over the processes of a
    data-parallel job, and a trainer's clipping does not see them.

    Attributes:
        threshold: what each optimizer step takes off every gate, >= 0, or a schedule; not multiplied by the learning
            rate. 0 leaves gates that only learn. Where it exceeds what a step can move a gate (about the learning
            rate), every gate closes in time, whatever its use.
        weight: strength of `weight * sum |g| / number of gates`, as if in the loss, >= 0, or a schedule; 0 adds none.
        prox: "soft" (the paper), or "released" (zero below twice the threshold; see `shrink`).
        start: gates before the first step: "normal" (drawn from N(0, 1) by seed and module name) or "ones" (the first
            forward pass is plain LoRA's).

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> GateDirections(threshold=1e-3).prox
        'soft'

    Source:
        SoRA, arXiv:2311.11696. Deviations: initial gates are hashes of (seed, module, direction) instead of the
        generator's; Adam's epsilon is added after bias correction, as in PyTorch; no weight decay on gates (the
        released script decays them) and no clipping.
    """

    threshold: Scalar = 3e-4
    weight: Scalar = 0.0
    prox: Prox = "soft"
    start: Start = "normal"

    def __post_init__(self) -> None:
        for name, scalar in (("threshold", self.threshold), ("weight", self.weight)):
            if not callable(scalar) and not scalar >= 0.0:
                raise MethodError(f"{name}={scalar}; it must be >= 0 (0 switches it off)")
        for name, value, names in (("prox", self.prox, Prox), ("start", self.start, Start)):
            if value not in get_args(names):
                raise MethodError(f'{name}="{value}" is not one of {list(get_args(names))}')

    def init(self, pairs: Sequence[Stack]) -> State:
        """Draw the gates, in float32 at least; a leaf of autograd `(n, r)` per stack."""
        return tuple(self._fresh(stack) for stack in pairs)

    def ranks(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Multiply what A gives by the gates."""
        shape = [1] * x.dim()
        shape[ctx.dim] = -1
        return x * state["gate"].to(x.dtype).view(shape)

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Move the gates: one step of Adam, then shrink."""
        threshold, weight = value_at(self.threshold, ctx.step), value_at(self.weight, ctx.step)
        # Pairs without gradient are not here, but their gates count in the mean.
        num_gates = ctx.num_pairs * sum(len(p) * p.r for p in pairs) / max(sum(map(len, pairs)), 1)
        moved = []
        for tensors, (rate, _) in zip(state, ctx.lr, strict=True):
            gate = tensors["gate"].detach()
            grad = gradient_of(tensors["gate"], ctx.leaf_scale) + weight / num_gates * gate.sign()
            stepped, latest = adam_step(gate, grad, tensors, rate)
            moved.append({"gate": shrink(stepped, threshold, self.prox).requires_grad_(), **latest})
        return after, moments[1], tuple(moved)

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Multiply the gates into the rows of A."""
        gates = [tensors["gate"].detach().unsqueeze(2) for tensors in state]
        return [Factors((f.A * gate).to(f.A.dtype), f.B) for f, gate in zip(factors, gates, strict=True)]

    def report(self, state: State, pairs: Sequence[Stack]) -> Sequence[dict[str, Tensor]]:
        """Tell `open`, the gates that are not zero, and `silent`, 1 for a module that has none."""
        opened = [(tensors["gate"].detach() != 0).sum(dim=1) for tensors in state]
        return tuple({"open": count, "silent": (count == 0).long()} for count in opened)

    def _fresh(self, stack: Stack) -> dict[str, Tensor]:
        A = stack.pairs[0].parameters[0]
        dtype = torch.promote_types(A.dtype, torch.float32)
        gate = torch.ones(len(stack), stack.r, dtype=dtype, device=A.device)
        if self.start == "normal":
            gate = draw_normals(stack.keys, stack.r, stack.seed).to(gate)
        return {"gate": gate.requires_grad_(), **adam_state(gate)}
