"""How orthogonal dW itself is: the loss of the paper's Table 5, its floor, and what lies above it."""

from __future__ import annotations

from torch import Tensor


def orthogonality_floor(r: int, d_out: int, d_in: int) -> int:
    """Return the least value `||dW dW^T - I||_F^2` can take for any dW = s B A with r directions.

    dW dW^T is d_out x d_out of rank at most k = min(r, d_out, d_in): at best k of its eigenvalues are 1, and
    each of the other d_out - k costs 1. Reporting the loss without it hides everything behind a constant.

    Args:
        r: directions of the pair, >= 0.
        d_out: rows of dW.
        d_in: columns of dW.

    Example:
        >>> [orthogonality_floor(r, d_out=100, d_in=768) for r in (32, 64, 80)]
        [68, 36, 20]

    Source:
        RM-LoRA, arXiv:2407.12074, Table 5 prints the loss; that it has this floor is our observation.
    """
    return d_out - min(r, d_out, d_in)


def orthogonality_excess(sigma: Tensor) -> Tensor:
    """Measure the orthogonality loss of dW above its floor: `sum_i (sigma_i^2 - 1)^2`.

    Args:
        sigma: `(n, k)`, the k = min(r, d_out, d_in) singular values of dW, scale included.

    Returns:
        `(n,)`; 0 when all k are exactly 1, k for dW = 0.

    Example:
        >>> import torch
        >>> orthogonality_excess(torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, 0.0]]))
        tensor([0., 9., 2.])
    """
    return (sigma.square() - 1).square().sum(-1)


def orthogonality_loss(sigma: Tensor, d_out: int) -> Tensor:
    """Compute `||dW dW^T - I||_F^2` for every dW from its singular values alone.

    dW dW^T has the eigenvalues sigma_i^2 and d_out - k zeros, so no d_out x d_out matrix is needed.

    Args:
        sigma: `(n, k)`, the k = min(r, d_out, d_in) singular values of dW, scale included.
        d_out: rows of dW.

    Returns:
        `(n,)`, floor plus excess.

    Example:
        >>> import torch
        >>> orthogonality_loss(torch.ones(1, 32), d_out=100)
        tensor([68.])

    Source:
        RM-LoRA, arXiv:2407.12074, Table 5 ("orthogonality loss").
    """
    return orthogonality_excess(sigma) + (d_out - sigma.shape[-1])
