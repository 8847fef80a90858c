"""DyLoRA's rank: at each step the forward pass goes through the first b directions only, b drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from rmlora.draws import hash_word
from rmlora.errors import MethodError
from rmlora.pairs import Factors, Kept, Stack
from rmlora.transform import Context, ForwardContext, Moments, State, Transform
from rmlora.transforms.mask_directions import Policy, hold_still

_STREAM = 2


def draw_rank(largest: Tensor, lowest: int | float, seed: int, step: int) -> Tensor:
    """Draw the rank b of one step, uniformly between the lowest and the largest.

    It is a hash of seed and step alone, so every module and every process has the same.

    Args:
        largest: int64, any shape; the largest rank of the adapter.
        lowest: an int is a rank, a float in (0, 1] a fraction of the largest, rounded, at least 1.
        seed: the seed given to `attach`.
        step: optimizer steps completed.

    Returns:
        int64, the shape of `largest`.

    Example:
        >>> draw_rank(torch.tensor([8, 8]), 8, seed=0, step=3)
        tensor([8, 8])
        >>> sorted({draw_rank(torch.tensor(4), 1, 0, step).item() for step in range(50)})
        [1, 2, 3, 4]

    Source:
        DyLoRA, arXiv:2210.07558. Deviation: a hash instead of a generator.
    """
    is_count = isinstance(lowest, int)
    low = torch.full_like(largest, int(lowest)) if is_count else (largest * lowest + 0.5).floor().long().clamp(min=1)
    return low + ((largest - low + 1) * hash_word(seed, step, _STREAM) >> 32)


@dataclass(frozen=True)
class DrawRank(Transform):
    """Link: train the adapter to be used at any rank, by a forward pass through its first b directions.

    In training `y = W0 x + s (r / b) B[:, :b] A[:b] x`, with b ~ U{lowest..r} drawn once per optimizer step for all
    modules, so that the scale is alpha / b where PEFT's is alpha / r. In evaluation all r directions act. Directions
    beyond b get no gradient, and under `frozen` only direction b does: those below it act and do not learn. Write
    adapters of lower rank with `rmlora.export_leading`.

    b is a hash of (seed, step): the same on every process and in every micro-batch of a step, exact on resume. A module
    of lower rank than the adapter's largest takes at most its own.

    Attributes:
        lowest: the lowest rank drawn: an int >= 1, or a float in (0, 1], a fraction of the largest rank. 1.0 draws
            none and is, unless `frozen`, plain LoRA.
        frozen: whether only direction b learns.
        policy: what momentum and weight decay may do to directions without gradient: "update" keeps their factors,
            "state" their moments too, "gradient" lets the optimizer move them, as it does in the released code.

    Raises:
        MethodError: a value is out of range; when attached, `lowest` exceeds the largest r.

    Example:
        >>> DrawRank().hooks() == {"ranks", "keep", "project"}, DrawRank(lowest=1.0).hooks()
        (True, frozenset())

    Source:
        DyLoRA, arXiv:2210.07558; Efficient-NLP, DyLoRA/loralib. Deviations: both square roots of r / b act between A
        and B; evaluation is at the full rank; the default policy is ours.
    """

    lowest: int | float = 1
    frozen: bool = False
    policy: Policy = "update"

    def __post_init__(self) -> None:
        is_count = isinstance(self.lowest, int) and not isinstance(self.lowest, bool)
        if isinstance(self.lowest, bool) or not (self.lowest >= 1 if is_count else 0.0 < self.lowest <= 1.0):
            raise MethodError(f"lowest={self.lowest!r}: give a rank (int, 1 to r) or a fraction of r (float in (0, 1])")
        if self.policy not in get_args(Policy):
            raise MethodError(f'policy="{self.policy}" is not one of {list(get_args(Policy))}')

    def hooks(self) -> frozenset[str]:
        """`ranks` and `keep`; `project` if directions are to be restored; none where only the full rank is drawn."""
        if not isinstance(self.lowest, int) and self.lowest == 1.0 and not self.frozen:
            return frozenset()
        return frozenset({"ranks", "keep"} if self.policy == "gradient" else {"ranks", "keep", "project"})

    def init(self, pairs: Sequence[Stack]) -> State:
        """Remember the largest rank of all modules, with each."""
        largest = max((stack.r for stack in pairs), default=1)
        if isinstance(self.lowest, int) and self.lowest > largest:
            raise MethodError(
                f"lowest={self.lowest} exceeds r={largest}, the largest rank; give at most {largest}, or a fraction "
                "such as 0.5"
            )
        return tuple({"largest": torch.full((len(s),), largest, device=s.keys.device)} for s in pairs)

    def ranks(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """In training, let the first b directions through, r / b times as strong."""
        if not ctx.training:
            return x
        r = x.shape[ctx.dim]
        rank = draw_rank(state["largest"], self.lowest, ctx.seed, ctx.step).clamp(max=r)
        gate = torch.where(torch.arange(r, device=x.device) < rank, r / rank.double(), 0.0)
        shape = [1] * x.dim()
        shape[ctx.dim] = -1
        return x * gate.to(x.dtype).view(shape)

    def keep(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Name the first b directions, or under `frozen` the last of them."""
        return tuple(self._drawn(tensors, stack, ctx) for tensors, stack in zip(state, pairs, strict=True))

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Restore directions that had no gradient, and under policy "state" their moments."""
        return *hold_still(self.keep(state, pairs, ctx), self.policy, before, after, moments, ctx), state

    def _drawn(self, tensors: dict[str, Tensor], stack: Stack, ctx: Context) -> Kept:
        rank = draw_rank(tensors["largest"], self.lowest, ctx.seed, ctx.step).clamp(max=stack.r).unsqueeze(1)
        positions = torch.arange(stack.r, device=rank.device)
        chosen = positions == rank - 1 if self.frozen else positions < rank
        return Kept(chosen, chosen)
