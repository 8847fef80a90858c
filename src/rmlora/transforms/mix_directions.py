"""A learnt r x r matrix between orthonormal A and B: the middle of PoLAR and StelLA."""

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
from rmlora.stacking import refuse_used
from rmlora.transform import Context, ForwardContext, Moments, State, Transform

Start = Literal["zeros", "identity"]

# Negative, because the counter of a mask's draw, an optimizer step, never is.
_STREAM_A, _STREAM_B = -3, -4


def mix_directions(x: Tensor, S: Tensor, dim: int = -1) -> Tensor:
    """Multiply what A gives by S.

    Args:
        x: `(..., r, ...)`, the r directions along `dim`.
        S: `(r, r)`.
        dim: where x holds its directions: -1, or that of a convolution's channels.

    Returns:
        A new tensor of the shape and dtype of x; element i along `dim` is `sum_j S[i, j] x[j]`.

    Example:
        >>> mix_directions(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        tensor([[2., 0.]])
    """
    return (x.movedim(dim, -1) @ S.to(x.dtype).mT).movedim(-1, dim)


def draw_orthonormal(keys: Tensor, d: int, r: int, *counters: int) -> Tensor:
    """Draw a matrix with orthonormal columns for each pair, uniformly: QR of normal numbers, with positive diagonal.

    Args:
        keys: int64 `(n, 2)`.
        d: rows, at least r.
        r: columns.
        counters: as for `rmlora.draws.hash_scores`.

    Returns:
        float64 `(n, d, r)` on the device of `keys`; computed on the CPU, so the same on every device.

    Example:
        >>> X = draw_orthonormal(torch.tensor([[1, 2]]), 5, 2, 0)
        >>> torch.allclose(X.mT @ X, torch.eye(2, dtype=X.dtype))
        True
    """
    Q, R = torch.linalg.qr(draw_normals(keys.cpu(), d * r, *counters).view(-1, d, r))
    drawn: Tensor = (Q * R.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)).to(keys.device)
    return drawn


@dataclass(frozen=True)
class MixDirections(Transform):
    """Link: put a learnt r x r matrix S between A and B, which begin orthonormal.

    The forward pass is `y = W0 x + s B S A x`. A's rows and B's columns begin as orthonormal sets, drawn by seed and
    module name. So the update is not held at zero by B, as LoRA's is, but by S, or starts at full size where S begins
    as the identity. After the optimizer's step on A and B, S takes one of its own: Adam at the rate of A's parameter
    group, without decay. Folding multiplies S into A, exactly. It keeps A and B orthonormal no longer than the first
    step: that is for another link, `LandFactors` or `RetractFactors`.

    S lives in the state, not in the model: it resumes with the optimizer, its gradient is averaged over the processes
    of a data-parallel job, and a trainer's clipping does not see it.

    Attributes:
        start: S before the first step: "zeros" (the first forward pass is the frozen model's), or "identity" (the
            update starts with all r singular values at the scale s, and outputs change when it is attached).

    Raises:
        MethodError: `start` is not a name above; when attached, r exceeds a side of a module, or the adapter's B is not
            zero, so that beginning anew would discard what it holds.

    Example:
        >>> MixDirections("identity").start
        'identity'

    Source:
        PoLAR, arXiv:2506.03133 (S begins at zero), and StelLA, arXiv:2510.01938 (at the identity), both with released
        code. Deviations: first factors are hashes of (seed, module) instead of the generator's; both train S by the
        user's optimizer, weight decay included, here it is Adam without decay.
    """

    start: Start = "zeros"

    def __post_init__(self) -> None:
        if self.start not in get_args(Start):
            raise MethodError(f'start="{self.start}" is not one of {list(get_args(Start))}')

    def init(self, pairs: Sequence[Stack]) -> State:
        """Make S, in float32 at least; a leaf of autograd `(n, r, r)` per stack."""
        return tuple(self._fresh(stack) for stack in pairs)

    def begin(self, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Draw orthonormal A and B, unless there is an adapter to lose."""
        refuse_used(pairs, factors, "this method begins with orthonormal factors of its own")
        return [self._orthonormal(stack, held) for stack, held in zip(pairs, factors, strict=True)]

    def ranks(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Multiply what A gives by S."""
        return mix_directions(x, state["S"], ctx.dim)

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Move S by one step of Adam."""
        moved = []
        for tensors, (rate, _) in zip(state, ctx.lr, strict=True):
            S, latest = adam_step(tensors["S"], gradient_of(tensors["S"], ctx.leaf_scale), tensors, rate)
            moved.append({"S": S.requires_grad_(), **latest})
        return after, moments[1], tuple(moved)

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Multiply S into A."""
        return [
            Factors((tensors["S"].detach() @ f.A.to(tensors["S"].dtype)).to(f.A.dtype), f.B)
            for tensors, f in zip(state, factors, strict=True)
        ]

    def _fresh(self, stack: Stack) -> dict[str, Tensor]:
        A, B = stack.pairs[0].A, stack.pairs[0].B
        if stack.r > min(A.shape[1], len(B)):
            raise MethodError(
                f"{stack.names[0]} has {A.shape[1]} inputs and {len(B)} outputs, too few for r={stack.r} orthonormal "
                "directions; lower r, or leave the module out of target_modules"
            )
        dtype = torch.promote_types(A.dtype, torch.float32)
        S = torch.eye(stack.r, dtype=dtype, device=A.device).repeat(len(stack), 1, 1)
        S = S if self.start == "identity" else torch.zeros_like(S)
        return {"S": S.requires_grad_(), **adam_state(S)}

    def _orthonormal(self, stack: Stack, held: Factors) -> Factors:
        A = draw_orthonormal(stack.keys, held.A.shape[2], stack.r, stack.seed, _STREAM_A)
        B = draw_orthonormal(stack.keys, held.B.shape[1], stack.r, stack.seed, _STREAM_B)
        return Factors(A.mT.to(held.A.dtype), B.to(held.B.dtype))
