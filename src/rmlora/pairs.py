"""Factor pairs: finding the (A, B) of every adapted module of a PEFT model, and stacking equal shapes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """The two factors of LoRA modules of one shape, stacked.

    Attributes:
        A: `(n, r, d_in)`; row i of each matrix is one half of direction i.
        B: `(n, d_out, r)`; column i of each matrix is the other half.
    """

    A: Tensor
    B: Tensor
