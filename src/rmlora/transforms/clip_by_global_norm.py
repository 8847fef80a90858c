"""Clipping inside the chain, for those who want the penalty inside the clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmlora.errors import MethodError
from rmlora.pairs import Factors, Stack
from rmlora.schedules import Scalar, value_at
from rmlora.transform import Context, State, Transform


def clip_by_global_norm(grads: Sequence[Factors], max_norm: float | Tensor) -> list[Factors]:
    """Scale all gradients down together, so that their joint 2-norm is at most `max_norm`.

    Args:
        grads: gradients of all stacks, A `(n, r, d_in)` and B `(n, d_out, r)`.
        max_norm: largest allowed norm, > 0, in gradient units; inf changes nothing.

    Returns:
        New gradients; nothing is written in place, and nothing waits for the device.

    Example:
        >>> grads = [Factors(torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), 4.0))]
        >>> clip_by_global_norm(grads, 1.0)[0].B.item()
        0.7999998331069946

    Source:
        Same formula as `torch.nn.utils.clip_grad_norm_`, its 1e-6 included. Deviation: the norm is over the adapter's
        factors alone; clip a classification head yourself.
    """
    if not grads:
        return []
    device = grads[0].A.device
    norms = torch.stack([_norm(g).to(device) for pair in grads for g in (pair.A, pair.B)])
    factor = (max_norm / (norms.norm() + 1e-6)).clamp(max=1.0)
    return [Factors(_scale(pair.A, factor), _scale(pair.B, factor)) for pair in grads]


def _norm(grad: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32))
    return norm


def _scale(grad: Tensor, factor: Tensor) -> Tensor:
    return grad * factor.to(device=grad.device, dtype=grad.dtype)


@dataclass(frozen=True)
class ClipByGlobalNorm(Transform):
    """Link: clip the adapter's gradients, with what earlier links added to them.

    What links add at the optimizer step comes after the trainer's own clipping. To have the penalty inside the clip,
    set the trainer's clipping off (`max_grad_norm=0` in the HF Trainer) and put this link behind the penalty.

    Attributes:
        max_norm: largest allowed norm, > 0, or a schedule; inf skips the link.

    Raises:
        MethodError: `max_norm` is not positive.

    Example:
        >>> ClipByGlobalNorm(1.0).max_norm
        1.0
    """

    max_norm: Scalar = 1.0

    def __post_init__(self) -> None:
        if not callable(self.max_norm) and not self.max_norm > 0.0:
            raise MethodError(f"max_norm={self.max_norm}; it must be > 0 (inf switches clipping off)")

    def hooks(self) -> frozenset[str]:
        """`grads`, unless the norm is the number inf."""
        return frozenset() if self.max_norm == math.inf else frozenset({"grads"})

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Clip the unscaled norm."""
        return clip_by_global_norm(grads, value_at(self.max_norm, ctx.step) * ctx.loss_scale), state
