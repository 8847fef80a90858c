"""The direction mask of RM-LoRA: at each step only some of a pair's r directions learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rmlora.draws import draw_directions
from rmlora.errors import MethodError
from rmlora.pairs import Factors, Kept, Stack
from rmlora.schedules import value_at
from rmlora.transform import Context, Moments, State, Transform, mask_factors

Sharing = Literal["shared", "independent"]
Policy = Literal["gradient", "update", "state"]
ActIn = Literal["backward", "step"]

_STREAM_A, _STREAM_B = 0, 1


def mask_directions(grads: Factors, kept_A: Tensor, kept_B: Tensor) -> Factors:
    """Zero the gradient of every direction that is not kept.

    Args:
        grads: A `(n, r, d_in)` and B `(n, d_out, r)`.
        kept_A: boolean `(n, r)`; which rows of A learn.
        kept_B: boolean `(n, r)`; which columns of B learn.

    Returns:
        New gradients; nothing is written in place.

    Example:
        >>> grads = Factors(torch.ones(1, 2, 3), torch.ones(1, 3, 2))
        >>> mask_directions(grads, torch.tensor([[True, False]]), torch.tensor([[True, False]])).B[0, 0]
        tensor([1., 0.])

    Source:
        RM-LoRA, arXiv:2407.12074, Algorithm 1. Deviation: the printed index ranges run over R in both dimensions;
        the text means whole rows of A and whole columns of B.
    """
    return mask_factors(grads, Kept(kept_A, kept_B))


@dataclass(frozen=True)
class MaskDirections(Transform):
    """Link: let only some directions of each pair learn, drawn anew as training goes on.

    The mask acts during backward, so that a trainer's clipping sees masked gradients. It is a function of
    (seed, step, module): the same on every process, exact on resume, and no generator is touched. With all directions
    kept, training is plain LoRA bit for bit.

    Under Adam a gradient mask is not a smaller learning rate: a direction kept with probability q drifts sqrt(q) as
    fast while its noise stays. And a masked direction still moves, by momentum and weight decay, unless `policy` says
    otherwise.

    Attributes:
        directions: how many of the r directions learn. An int >= 1 is a count (at most r); a float in (0, 1] is a
            fraction of r, rounded, at least 1; a schedule may return either and is clamped to 1..r.
        sharing: "shared": row i of A and column i of B learn together (Algorithm 1); "independent": two draws.
        policy: "gradient": the gradient is zero and the optimizer does with it what it does (the paper);
            "update": masked directions keep their parameters exactly; "state": and the optimizer's moments too.
            Counters that a whole matrix shares (Adam's `step`) advance all the same.
        resample_steps: optimizer steps between draws, >= 1; steps per epoch draws once per epoch.
        mask_first_step: whether the very first optimizer step is masked.
        act_in: "backward", or "step" to mask at the optimizer step, after the trainer's clipping (the authors' order).

    Raises:
        MethodError: a value is out of range; when attached, a count exceeds a module's r.

    Example:
        >>> MaskDirections(4).count(r=8), MaskDirections(0.25).count(r=8), MaskDirections(0.5).count(r=1)
        (4, 2, 1)

    Source:
        RM-LoRA, arXiv:2407.12074, Algorithm 1 and Sec. 4.3. Deviations: the paper draws at every step and speaks of
        epochs in its introduction; `policy` and `sharing` are choices it does not discuss.
    """

    directions: int | float | Callable[[int], float] = 0.5
    sharing: Sharing = "shared"
    policy: Policy = "gradient"
    resample_steps: int = 1
    mask_first_step: bool = True
    act_in: ActIn = "backward"

    def __post_init__(self) -> None:
        if not callable(self.directions):
            is_count = isinstance(self.directions, int) and not isinstance(self.directions, bool)
            valid = self.directions >= 1 if is_count else 0.0 < self.directions <= 1.0
            if isinstance(self.directions, bool) or not valid:
                raise MethodError(
                    f"directions={self.directions!r}: give a count (int, 1 to r) or a fraction of r (float in (0, 1])"
                )
        if self.resample_steps < 1:
            raise MethodError(f"resample_steps={self.resample_steps}; it counts optimizer steps between draws, >= 1")
        for name, value, names in (
            ("sharing", self.sharing, Sharing),
            ("policy", self.policy, Policy),
            ("act_in", self.act_in, ActIn),
        ):
            if value not in get_args(names):
                raise MethodError(f'{name}="{value}" is not one of {list(get_args(names))}')

    def hooks(self) -> frozenset[str]:
        """Where the mask acts, and `project` if masked directions are to be restored after the update."""
        where = "keep" if self.act_in == "backward" else "grads"
        return frozenset({where}) if self.policy == "gradient" else frozenset({where, "project"})

    def count(self, r: int, step: int = 0) -> int:
        """Return how many of `r` directions learn at `step`, 1 to r."""
        directions = value_at(self.directions, step)
        count = directions if isinstance(directions, int) else math.floor(directions * r + 0.5)
        return min(max(int(count), 1), r)

    def init(self, pairs: Sequence[Stack]) -> State:
        """Check a fixed count against every module's r; there is nothing to remember."""
        for stack in pairs:
            if isinstance(self.directions, int) and self.directions > stack.r:
                raise MethodError(
                    f"directions={self.directions} exceeds r={stack.r} of {stack.names[0]}; give at most {stack.r}, "
                    "or a fraction such as 0.5"
                )
        return super().init(pairs)

    def keep(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Name the directions that get a gradient; only used with `act_in="backward"`."""
        return self.learning(state, pairs, ctx)

    def learning(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Name the directions that learn, wherever the mask acts."""
        return tuple(self._draw(stack, ctx) for stack in pairs)

    @property
    def learns_what_is_kept(self) -> bool:
        """Whether the mask acts during backward."""
        return self.act_in == "backward"

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Mask here, at this place of the chain; only used with `act_in="step"`."""
        return [mask_factors(g, self._draw(p, ctx)) for g, p in zip(grads, pairs, strict=True)], state

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Restore masked directions, and under policy "state" their moments."""
        kept = [self._draw(stack, ctx) for stack in pairs]
        return *hold_still(kept, self.policy, before, after, moments, ctx), state

    def _draw(self, stack: Stack, ctx: Context) -> Kept | None:
        count = self.count(stack.r, ctx.step)
        if count == stack.r or (ctx.step == 0 and not self.mask_first_step):
            return None
        draw = ctx.step // self.resample_steps
        A = draw_directions(stack.keys, stack.r, count, ctx.seed, draw, _STREAM_A)
        if self.sharing == "shared":
            return Kept(A, A, count)
        return Kept(A, draw_directions(stack.keys, stack.r, count, ctx.seed, draw, _STREAM_B), count)


def hold_still(
    kept: Sequence[Kept | None],
    policy: Policy,
    before: Sequence[Factors],
    after: Sequence[Factors],
    moments: tuple[Moments, Moments],
    ctx: Context,
) -> tuple[Sequence[Factors], Moments]:
    """Return factors and moments after a step in which directions that are not kept stood still.

    Args:
        kept: which directions moved, per stack.
        policy: "update" restores their factors, "state" their moments too; "gradient" changes nothing.
        before: factors before the optimizer's update.
        after: factors after it.
        moments: the optimizer's moments before and after.
        ctx: of the step.

    Raises:
        MethodError: the optimizer shares moments between directions, and policy is "state".
    """
    if policy == "gradient":
        return after, moments[1]
    restored = [_restore(k, b, a) for k, b, a in zip(kept, before, after, strict=True)]
    if policy == "update":
        return restored, moments[1]
    if ctx.shared_moments:
        raise MethodError(
            f'policy="state" cannot keep single directions of {", ".join(ctx.shared_moments)}, which this '
            'optimizer shares between directions; use policy="update", or AdamW'
        )
    latest = tuple(
        {name: _restore(k, old[name], new[name]) for name in new} for k, old, new in zip(kept, *moments, strict=True)
    )
    return restored, latest


def _restore(kept: Kept | None, before: Factors, after: Factors) -> Factors:
    if kept is None:
        return after
    return Factors(
        torch.where(kept.A.unsqueeze(2), after.A, before.A),
        torch.where(kept.B.unsqueeze(1), after.B, before.B),
    )
