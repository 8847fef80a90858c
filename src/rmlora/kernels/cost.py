"""Which way a projection is computed: a small rule, from its shapes alone."""

from __future__ import annotations

from typing import Literal

Way = Literal["fused", "merged"]

# What one entry of the large operand costs, in multiply-adds: read for a skinny product, read and written in place,
# or read and written while B A is added to a weight. Fitted to timings; see benchmarks/2026-11-25_fast-path.
_READ, _ADDED, _MERGED = 12, 5, 10


def choose_way(tokens: int, d_in: int, d_out: int, r: int, kept: int) -> Way:
    """Choose between two skinny products beside the frozen one, and one product with `W0 + s B A`.

    Fused, forward and backward pay for all r directions at every token. Merged, they pay for r directions once per
    entry of the weight, in the forward and again in the backward, and at every token for the kept directions only.

    Args:
        tokens: rows of the input, >= 0.
        d_in: features of the input.
        d_out: features of the output.
        r: directions of the adapter.
        kept: directions that learn at this step, 0 to r.

    Returns:
        The way whose estimated cost is lower.

    Example:
        >>> choose_way(2048, 384, 384, r=64, kept=8), choose_way(64, 768, 768, r=8, kept=4)
        ('merged', 'fused')
    """
    activations = tokens * (d_in + d_out)
    learning = activations * (_READ + kept)
    fused = activations * (_READ + _ADDED + 2 * r) + learning
    merged = 2 * d_in * d_out * (_MERGED + r) + 2 * learning
    return "merged" if merged < fused else "fused"
