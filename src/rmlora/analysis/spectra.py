"""Singular values of `s B A` and the ranks read off them, from r x r algebra only."""

from __future__ import annotations

import torch
from torch import Tensor

from rmlora.analysis.precision import at_least_float32, trusted_dtype
from rmlora.pairs import Factors


def singular_values(factors: Factors, scale: Tensor | float = 1.0) -> Tensor:
    """Compute the singular values of every `s B A` without ever forming the d_out x d_in product.

    With thin QR factorisations B = Q_B R_B and A^T = Q_A R_A, B A = Q_B (R_B R_A^T) Q_A^T, and the outer
    factors have orthonormal columns: the singular values of the small matrix in the middle are those of the
    product. The Q are not computed at all. The cost per pair is O((d_in + d_out) r^2).

    Args:
        factors: A `(n, r, d_in)` and B `(n, d_out, r)`; detached, not mutated. Computed in float32, or in
            float64 if they are float64. r may exceed d_in or d_out, and may be 0.
        scale: s, usually lora_alpha / r; a number, or `(n,)` with one per pair.

    Returns:
        `(n, min(r, d_in, d_out))`, in descending order, never negative; the other singular values of the
        product are 0.

    Example:
        >>> A = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
        >>> singular_values(Factors(A, torch.eye(2).unsqueeze(0)), scale=2.0)
        tensor([[6., 2.]])
    """
    A, B = at_least_float32(factors.A.detach()), at_least_float32(factors.B.detach())
    R_A: Tensor = torch.linalg.qr(A.mT, mode="r").R
    R_B: Tensor = torch.linalg.qr(B, mode="r").R
    sigma: Tensor = torch.linalg.svdvals(R_B @ R_A.mT)
    size = torch.as_tensor(scale, dtype=sigma.dtype, device=sigma.device).abs()
    return sigma * size.reshape(-1, 1)


def default_tolerance(d_out: int, d_in: int, dtype: torch.dtype = torch.float32) -> float:
    """Return the relative tolerance below which a singular value is rounding noise: eps * max(d_out, d_in).

    Args:
        d_out: rows of dW.
        d_in: columns of dW.
        dtype: the precision in which the values are trusted; bf16 and fp16 count as float32, because their
            own eps times a thousand exceeds 1 and every matrix would have rank 0.

    Example:
        >>> f"{default_tolerance(768, 3072):.2e}"
        '3.66e-04'
    """
    return float(torch.finfo(trusted_dtype(dtype)).eps) * max(d_out, d_in)


def numerical_rank(sigma: Tensor, tolerance: Tensor | float) -> Tensor:
    """Count the singular values above `tolerance` times the largest one.

    The count depends on the tolerance, so no rank should be printed without it.

    Args:
        sigma: `(n, k)`, descending.
        tolerance: relative to the largest value, >= 0; a number or `(n,)`. 0 counts every value that is not
            exactly 0.

    Returns:
        `(n,)` int64; 0 for a zero matrix.

    Example:
        >>> numerical_rank(torch.tensor([[4.0, 1.0, 1e-3], [0.0, 0.0, 0.0]]), tolerance=1e-2)
        tensor([2, 0])
    """
    relative = torch.as_tensor(tolerance, dtype=sigma.dtype, device=sigma.device).reshape(-1, 1)
    return (sigma > relative * _largest(sigma)).sum(-1)


def stable_rank(sigma: Tensor) -> Tensor:
    """Divide the squared Frobenius norm by the squared spectral norm: `sum sigma^2 / sigma_1^2`.

    It needs no tolerance: it says how many directions carry as much energy as the strongest.

    Args:
        sigma: `(n, k)`, descending.

    Returns:
        `(n,)`, between 1 and the rank; 0 for a zero matrix.

    Example:
        >>> stable_rank(torch.tensor([[2.0, 2.0, 1.0], [0.0, 0.0, 0.0]]))
        tensor([2.2500, 0.0000])
    """
    return _divide(sigma, _largest(sigma)).square().sum(-1)


def effective_rank(sigma: Tensor) -> Tensor:
    """Take the exponential of the entropy of the spectrum: `exp(-sum p log p)`, p = sigma / sum sigma.

    Args:
        sigma: `(n, k)`.

    Returns:
        `(n,)`, between 1 and the rank, which it reaches when all values are equal; 0 for a zero matrix.

    Example:
        >>> effective_rank(torch.tensor([[3.0, 3.0, 0.0], [0.0, 0.0, 0.0]]))
        tensor([2., 0.])
    """
    total = sigma.sum(-1, keepdim=True)
    shares = _divide(sigma, total)
    # xlogy is 0 at 0, the limit of p log p, so that values that vanish do not make the entropy NaN.
    entropy = -torch.special.xlogy(shares, shares).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), torch.zeros_like(entropy))


def _largest(sigma: Tensor) -> Tensor:
    """The first singular value as a column `(n, 1)`; 0 where there is none (r = 0)."""
    return sigma[:, :1] if sigma.shape[-1] else sigma.new_zeros(len(sigma), 1)


def _divide(sigma: Tensor, by: Tensor) -> Tensor:
    """`sigma / by`, with 0 / 0 = 0: a zero matrix has no spectrum to share out."""
    return torch.where(by > 0, sigma / by, torch.zeros_like(sigma))
