"""This step's masks and the positions they keep, rewritten in place so that compiled code and views stay good."""

from __future__ import annotations

import torch
from torch import Tensor

from rmlora.pairs import Kept


class KeptRows:
    """One stack's mask, as booleans for the reference path and as positions for the fast one.

    Attributes:
        kept: booleans `(n, r)` for A and for B.
        finds_rows: whether somebody asks for positions: they cost a sort, and without a count a wait for the device.
        rows: int64 `(n, k)` for A and for B, ascending; None where pairs keep different numbers, or nobody asks.
    """

    def __init__(self, kept: Kept, finds_rows: bool = True) -> None:
        self.kept = Kept(kept.A.clone(), kept.B.clone())
        self.finds_rows = finds_rows
        self.rows = find_rows(kept) if finds_rows else None

    def replace(self, kept: Kept) -> bool:
        """Take another step's mask in place; False, with nothing changed, if the shapes do not allow it."""
        rows = find_rows(kept) if self.finds_rows else None
        new, old = (() if both is None else both for both in (rows, self.rows))
        if [side.shape for side in new] != [side.shape for side in old]:
            return False
        for target, source in zip((self.kept.A, self.kept.B, *old), (kept.A, kept.B, *new), strict=True):
            target.copy_(source)
        return True


def find_rows(kept: Kept) -> tuple[Tensor, Tensor] | None:
    """Return the positions kept in A and in B, `(n, k)` each; None where pairs keep different numbers.

    Example:
        >>> mask = torch.tensor([[True, False, True], [False, True, True]])
        >>> find_rows(Kept(mask, mask))[0].tolist()
        [[0, 2], [1, 2]]
    """
    count = kept.count
    if count is None:
        counts = {int(number) for side in (kept.A, kept.B) for number in side.sum(dim=1).tolist()}
        if len(counts) != 1:
            return None
        count = counts.pop()
    A = _positions(kept.A, count)
    return A, A.clone() if kept.B is kept.A else _positions(kept.B, count)


def _positions(mask: Tensor, count: int) -> Tensor:
    return torch.sort(mask.to(torch.uint8), dim=1, descending=True, stable=True).indices[:, :count].contiguous()
