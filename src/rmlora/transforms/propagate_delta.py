"""Delta-LoRA's second term: what the product B A has moved since a snapshot acts once more, without gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmlora.errors import MethodError
from rmlora.pairs import Factors, Stack
from rmlora.transform import Context, ForwardContext, Moments, State, Transform


def propagate_delta(factors: Factors, snapshot: Factors, strength: float | Tensor) -> Factors:
    """Return factors of `strength * (B A - B_K A_K)`, of twice as many directions.

    Args:
        factors: A `(..., r, d_in)` and B `(..., d_out, r)`.
        snapshot: A_K and B_K, of the same shapes.
        strength: lambda, a number, or a tensor that broadcasts against B.

    Returns:
        New factors; nothing is written in place.

    Example:
        >>> now, then = (Factors(torch.full((1, 2), a), torch.ones(3, 1)) for a in (5.0, 2.0))
        >>> moved = propagate_delta(now, then, 0.5)
        >>> (moved.B @ moved.A)[0]
        tensor([1.5000, 1.5000])

    Source:
        Delta-LoRA, arXiv:2309.02411: its steps `strength * (B_t+1 A_t+1 - B_t A_t)` from K on, summed.
    """
    return Factors(factors.A, strength * factors.B).joined(Factors(snapshot.A, -strength * snapshot.B))


@dataclass(frozen=True)
class PropagateDelta(Transform):
    """Link: add `strength * (B A - B_K A_K)` to the update, as a frozen block beside the pair.

    The forward pass is `y = W0 x + s (B A + strength (B A - B_K A_K)) x`. The second term gives x a gradient, and none
    to A and B. A_K and B_K are the factors before optimizer step `start_step`; until then it is plain LoRA. The method
    adds `strength * s` times every step of the product to W0, without a gradient; these steps sum to the term here, so
    W0 stays frozen and the adapter can be saved: `(1 + strength) B A` and `-strength B_K A_K`, rank 2 r.

    A pair that gets no gradient at `start_step` does not move, so its snapshot waits until it does.

    Attributes:
        strength: lambda, a number >= 0; 0 skips the link. No schedule: the sum would not telescope.
        start_step: K, optimizer steps of plain LoRA before the snapshot, >= 0.

    Raises:
        MethodError: a value is out of range.

    Example:
        >>> PropagateDelta(strength=2.0, start_step=500).hooks() >= {"blocks", "fold"}
        True

    Source:
        Delta-LoRA, arXiv:2309.02411. Deviations: the sum of its updates of W is kept as factors instead of being
        written into W; `lora_dropout` is left to the adapter's configuration (the paper removes it), and where it is on
        the second term sees the same dropped input.
    """

    strength: float = 0.5
    start_step: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength < float("inf"):
            raise MethodError(f"strength={self.strength}; it must be a number >= 0 (0 is plain LoRA)")
        if self.start_step < 0:
            raise MethodError(f"start_step={self.start_step}; it counts optimizer steps before the snapshot, >= 0")

    def hooks(self) -> frozenset[str]:
        """Nothing at strength zero."""
        return super().hooks() if self.strength else frozenset()

    def init(self, pairs: Sequence[Stack]) -> State:
        """Make room for the snapshot; `taken` `(n, 1, 1)` is 1 once it is there."""
        return tuple(
            {
                "A": torch.zeros_like(stack.A),
                "B": torch.zeros_like(stack.B),
                "taken": torch.zeros(len(stack), 1, 1, dtype=stack.B.dtype, device=stack.B.device),
            }
            for stack in pairs
        )

    def blocks(self, state: dict[str, Tensor], factors: Factors, ctx: ForwardContext) -> Factors | None:
        """Return the second term."""
        return propagate_delta(factors, Factors(state["A"], state["B"]), self.strength * state["taken"])

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Take the snapshot of the factors before this step, once, from `start_step` on."""
        if ctx.step >= self.start_step:
            state = tuple(_snapshot(tensors, factors) for tensors, factors in zip(state, before, strict=True))
        return after, moments[1], state

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Return 2 r directions: (1 + strength) B A, and the snapshot; 3 r where another link has folded the pair."""
        folded = []
        for tensors, stack, own in zip(state, pairs, factors, strict=True):
            strength, live = self.strength * tensors["taken"], stack.factors
            snapshot = Factors(tensors["A"], tensors["B"])
            if own.A is live.A and own.B is live.B:
                folded.append(Factors(own.A, (1.0 + strength) * own.B).joined(_times(snapshot, -strength)))
            else:
                folded.append(own.joined(propagate_delta(live, snapshot, strength)))
        return folded


def _snapshot(tensors: dict[str, Tensor], before: Factors) -> dict[str, Tensor]:
    is_taken = tensors["taken"] > 0
    return {
        "A": torch.where(is_taken, tensors["A"], before.A),
        "B": torch.where(is_taken, tensors["B"], before.B),
        "taken": torch.ones_like(tensors["taken"]),
    }


def _times(factors: Factors, strength: Tensor) -> Factors:
    return Factors(factors.A, strength * factors.B)
