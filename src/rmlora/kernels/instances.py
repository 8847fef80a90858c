"""s B A x for several instances of an adapter, each with features of its own left out, without a copy of x or y."""

from __future__ import annotations

import torch
from torch import Tensor


def add_instances(
    scale: float, output: Tensor, x: Tensor, A: Tensor, B: Tensor, entering: Tensor, leaving: Tensor
) -> Tensor:
    """Add `s m_B * (B (A (m_A * x)))` with other m_A, m_B for every instance; no gradient.

    The factors are multiplied by the masks instead of x and y: they are smaller by the number of tokens over r.

    Args:
        scale: s.
        output: `(rows, ..., d_out)`, what the base gave; changed in place where its layout allows.
        x: `(rows, ..., d_in)`, what the base was given; instance i of n has the i-th n-th of all rows.
        A: `(r, d_in)`.
        B: `(d_out, r)`.
        entering: m_A, `(n, d_in)`.
        leaving: m_B, `(n, d_out)`.

    Returns:
        The sum, in the shape of `output`.

    Example:
        >>> half = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> x, ones = torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.ones(1, 2)
        >>> add_instances(1.0, torch.zeros(2, 1), x, ones, torch.ones(1, 1), half, torch.ones(2, 1))
        tensor([[1.],
                [2.]])
    """
    n = len(entering)
    narrow = torch.bmm(x.reshape(n, -1, x.shape[-1]), (entering.unsqueeze(1) * A).mT)
    wide = (leaving * scale).unsqueeze(2) * B
    return output.reshape(n, -1, output.shape[-1]).baddbmm_(narrow, wide.mT).view(output.shape)
