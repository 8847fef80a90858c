"""LoRA+: B moves further than A at each step, by a fixed ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmlora.errors import MethodError
from rmlora.pairs import Factors, Stack
from rmlora.schedules import Scalar, value_at
from rmlora.transform import Context, Moments, State, Transform


def multiply_update(before: Tensor, after: Tensor, ratio: float) -> Tensor:
    """Return where a step `ratio` times as long would have ended: before + ratio (after - before).

    Args:
        before: the values before the optimizer's update, any shape.
        after: the values after it.
        ratio: > 0; 1 returns `after` itself.

    Returns:
        A new tensor in the dtype of `after`, computed in float32 at least; nothing is written in place.

    Example:
        >>> multiply_update(torch.tensor([1.0, 1.0]), torch.tensor([1.5, 1.0]), ratio=4.0)
        tensor([3., 1.])

    Source:
        LoRA+, arXiv:2402.12354: the learning rate of B is that of A times a ratio.
    """
    if ratio == 1.0:
        return after
    wide = torch.promote_types(after.dtype, torch.float32)
    start = before.to(wide)
    return torch.lerp(start, after.to(wide), ratio).to(after.dtype)


@dataclass(frozen=True)
class MultiplyUpdate(Transform):
    """Link: multiply by `ratio` what the optimizer does to B, as a learning rate of B `ratio` times that of A would.

    It acts after the optimizer's step, on its result, so that no parameter groups have to be built and any trainer will
    do. That equals the larger learning rate, up to rounding, wherever the update is proportional to the learning rate:
    SGD, Adam, AdamW (decoupled decay included), RMSprop, Adagrad, Lion. It does not for optimizers that keep a learning
    rate of their own (Rprop, LBFGS, ASGD, `torch.optim.Adafactor`, schedule-free ones): there the link multiplies the
    update all the same, and that is something else than LoRA+.

    Moments, masks and gradients are left alone; what a mask held still before this link stays still. Put it in front of
    links that move directions (BeamLoRA's), whose moves are no updates.

    Attributes:
        ratio: learning rate of B over that of A, > 0, or a schedule; the number 1 skips the link.

    Raises:
        MethodError: the ratio is not positive and finite.

    Example:
        >>> MultiplyUpdate(4.0).hooks(), MultiplyUpdate(1.0).hooks()
        (frozenset({'project'}), frozenset())

    Source:
        LoRA+, arXiv:2402.12354. Deviations: the update is multiplied instead of the rate; B of embeddings is treated
        as any other B, and nothing outside the adapter is.
    """

    ratio: Scalar = 16.0

    def __post_init__(self) -> None:
        if not callable(self.ratio) and not 0.0 < self.ratio < math.inf:
            raise MethodError(
                f"ratio={self.ratio}; the learning rate of B over that of A must be finite and > 0 (1 is plain LoRA)"
            )

    def hooks(self) -> frozenset[str]:
        """`project`, unless the ratio is the number 1."""
        return frozenset() if not callable(self.ratio) and self.ratio == 1.0 else frozenset({"project"})

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Lengthen the step of B."""
        ratio = value_at(self.ratio, ctx.step)
        moved = [Factors(new.A, multiply_update(old.B, new.B, ratio)) for old, new in zip(before, after, strict=True)]
        return moved, moments[1], state
