"""Gram matrices of the factors, and how far they are from the identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmlora.analysis.precision import at_least_float32
from rmlora.pairs import Factors


@dataclass(frozen=True)
class Residual:
    """The squared distance of a Gram matrix from the identity, split by what causes it.

    Attributes:
        norm: `(n,)` the diagonal's share, sum_i (G_ii - 1)^2: directions longer or shorter than one.
        overlap: `(n,)` the rest, sum_{i != j} G_ij^2: directions that point the same way, so that rank is
            spent twice. 0 means orthogonal, of whatever length.
    """

    norm: Tensor
    overlap: Tensor

    @property
    def total(self) -> Tensor:
        """The whole residual ||G - I||_F^2, `(n,)`."""
        return self.norm + self.overlap


def gram_rows(A: Tensor) -> Tensor:
    """Multiply the rows of each A with one another: `A A^T`, in float32 or better.

    Args:
        A: `(n, r, d_in)`; not mutated.

    Returns:
        `(n, r, r)`, symmetric.

    Example:
        >>> gram_rows(torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]))
        tensor([[[25.,  3.],
                 [ 3.,  1.]]])
    """
    A = at_least_float32(A)
    return A @ A.mT


def gram_columns(B: Tensor) -> Tensor:
    """Multiply the columns of each B with one another: `B^T B`, in float32 or better.

    Args:
        B: `(n, d_out, r)`; not mutated.

    Returns:
        `(n, r, r)`, symmetric.

    Example:
        >>> gram_columns(torch.tensor([[[3.0, 1.0], [4.0, 0.0]]]))
        tensor([[[25.,  3.],
                 [ 3.,  1.]]])
    """
    return gram_rows(B.mT)


def residual(gram: Tensor) -> Residual:
    """Measure how far each Gram matrix is from the identity, `||G - I||_F^2`, in two parts.

    The two parts answer different questions: `norm` is about the size of the directions, `overlap` about
    whether they are different directions at all.

    Args:
        gram: `(n, r, r)`, from `gram_rows` or `gram_columns`.

    Returns:
        The parts and their sum, each `(n,)`; a Gram matrix of zeros has norm r and overlap 0.

    Example:
        >>> parts = residual(torch.tensor([[[2.0, 3.0], [3.0, 1.0]]]))
        >>> parts.norm, parts.overlap, parts.total
        (tensor([1.]), tensor([18.]), tensor([19.]))
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    off_diagonal = gram - torch.diag_embed(diagonal)
    return Residual((diagonal - 1).square().sum(-1), off_diagonal.square().sum((-2, -1)))


def penalty(factors: Factors) -> Tensor:
    """Evaluate the orthogonality penalty of each pair: `||A A^T - I||_F^2 + ||B^T B - I||_F^2`.

    Args:
        factors: A `(n, r, d_in)` and B `(n, d_out, r)`; not mutated. Gradients flow.

    Returns:
        `(n,)`, unweighted; 0 when the rows of A and the columns of B are both orthonormal. At B = 0 the B
        term is r.

    Example:
        >>> penalty(Factors(torch.eye(2).expand(1, 2, 2), torch.zeros(1, 3, 2)))
        tensor([2.])

    Source:
        RM-LoRA, arXiv:2407.12074, Eq. 10; the text below it writes `W_A W_B` where `W_B W_A` is meant.
    """
    return residual(gram_rows(factors.A)).total + residual(gram_columns(factors.B)).total
