"""Products with few rows or columns, which the libraries' general routines compute at a fraction of the memory's speed.

What is split where was measured on CPUs in float32: see benchmarks/2026-11-25_fast-path. Elsewhere one call is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PARTS = 4
_MIN_TOKENS = 256
_MAX_COLUMNS = 16
_MIN_FEATURES = 1024


def sum_outer(left: Tensor, right: Tensor) -> Tensor:
    """Return `left^T right`, a sum over tokens.

    Args:
        left: `(tokens, k)`, few columns.
        right: `(tokens, d)`, many.

    Returns:
        `(k, d)`.

    Example:
        >>> sum_outer(torch.ones(300, 2), torch.ones(300, 3))[0]
        tensor([300., 300., 300.])
    """
    tokens, k = left.shape
    if not _is_worth_splitting(right) or k > _MAX_COLUMNS:
        return left.t() @ right
    body = tokens - tokens % _PARTS
    first, second = (factor[:body].reshape(_PARTS, body // _PARTS, -1) for factor in (left, right))
    total = torch.bmm(first.transpose(1, 2), second).sum(0)
    return total if body == tokens else torch.addmm(total, left[body:].t(), right[body:])


def read_through(x: Tensor, rows: Tensor) -> Tensor:
    """Return `x rows^T`, a few numbers for every token.

    Args:
        x: `(tokens, d)`.
        rows: `(k, d)`, contiguous; few rows.

    Returns:
        `(tokens, k)`.

    Example:
        >>> read_through(torch.ones(300, 3), torch.ones(2, 3))[0]
        tensor([3., 3.])
    """
    tokens, d = x.shape
    k = len(rows)
    if not _is_worth_splitting(x) or d < _MIN_FEATURES or 2 * k > _MAX_COLUMNS:
        return x @ rows.t()
    body = tokens - tokens % _PARTS
    parts = torch.bmm(rows.expand(_PARTS, k, d), x[:body].reshape(_PARTS, body // _PARTS, d).transpose(1, 2))
    read = parts.transpose(1, 2).reshape(body, k)
    return read if body == tokens else torch.cat([read, x[body:] @ rows.t()])


def _is_worth_splitting(large: Tensor) -> bool:
    return large.device.type == "cpu" and large.dtype in (torch.float32, torch.float64) and len(large) >= _MIN_TOKENS
