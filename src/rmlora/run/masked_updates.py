"""How much of an epoch's update went to directions whose gradient was masked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmlora.pairs import Kept


class MaskedUpdates:
    """Sums of the changes of A and B, split by whether the direction's gradient was masked at that step.

    Under AdamW a masked direction still moves, by momentum and weight decay; this says how much of all movement that
    is. Costs a copy of the factors per step, and nothing at steps that mask nothing.
    """

    def __init__(self, handle: Any) -> None:
        """Take what `rmlora.attach` returned; the handle and its factors are only read."""
        self.handle = handle
        self.before: list[tuple[Tensor, Tensor, Tensor, Tensor]] | None = None
        self.masked = 0.0
        self.all = 0.0

    @torch.no_grad()
    def begin_step(self) -> None:
        """Remember the factors and the masks of the optimizer step that comes now."""
        masks = dict(self.handle.masks())
        if all(bool(side.all()) for kept in masks.values() for side in (kept.A, kept.B)):
            self.before = None
            return
        self.before = [
            (pair.A.clone(), pair.B.clone(), *_masked(masks.get(pair), pair.r, pair.A.device))
            for pair in self.handle.pairs
        ]

    @torch.no_grad()
    def end_step(self) -> None:
        """Add what the optimizer step changed."""
        if self.before is None:
            return
        for pair, (A, B, masked_A, masked_B) in zip(self.handle.pairs, self.before, strict=True):
            moved_A, moved_B = (pair.A - A).abs().sum(1), (pair.B - B).abs().sum(0)
            self.masked += float(moved_A[masked_A].sum() + moved_B[masked_B].sum())
            self.all += float(moved_A.sum() + moved_B.sum())
        self.before = None

    def take(self) -> float | None:
        """Return the masked share of all movement since the last call, 0 to 1, and start anew; None without masks."""
        share = self.masked / self.all if self.all > 0 else None
        self.masked = self.all = 0.0
        return share


def _masked(kept: Kept | None, r: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Boolean `(r,)` for A and for B: which directions are not kept."""
    if kept is None:
        none = torch.zeros(r, dtype=torch.bool, device=device)
        return none, none
    return ~kept.A, ~kept.B
