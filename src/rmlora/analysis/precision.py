"""The precision of the analysis: never below float32, whatever the adapter was stored in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(X: Tensor) -> Tensor:
    """Return `X` in float32, or unchanged where it is already as precise.

    Factors kept in bf16 or fp16 hold exact values, but products of them do not fit those formats, and LAPACK
    has no routines for them.

    Args:
        X: any floating tensor; not mutated.

    Example:
        >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
        >>> at_least_float32(torch.ones(2, dtype=torch.float64)).dtype
        torch.float64
    """
    return X.to(trusted_dtype(X.dtype))


def trusted_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision numbers stored as `dtype` are computed and judged in: float64 as is, all else float32.

    Example:
        >>> trusted_dtype(torch.bfloat16)
        torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32
