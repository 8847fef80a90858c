"""How close an adapter of r directions can come to full fine-tuning on a layer, and how close one came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Errors:
    """The distance of an update from the one that full fine-tuning made, in three norms.

    Attributes:
        spectral: the largest singular value of what is missing: the worst input of length 1.
        frobenius: its Frobenius norm: all inputs alike.
        weighted: root mean square of the missing output over the layer's own inputs; None without these.
    """

    spectral: float
    frobenius: float
    weighted: float | None = None


@dataclass(frozen=True)
class LayerGap:
    """One layer.

    Attributes:
        name: the module's.
        d_out: rows of its weight.
        d_in: columns.
        r: directions of the adapter.
        size: norms of the full update itself: the error of doing nothing.
        achieved: the adapter's error.
        attainable: the least error that any update of so many directions has, by number of directions; r is among
            them.
    """

    name: str
    d_out: int
    d_in: int
    r: int
    size: Errors
    achieved: Errors
    attainable: dict[int, Errors]

    @property
    def excess(self) -> float:
        """Achieved over attainable Frobenius error at the adapter's own r, >= 1; infinite where 0 was attainable."""
        least = self.attainable[self.r].frobenius
        return self.achieved.frobenius / least if least > 0 else float("inf")


def attainable_errors(update: Tensor, ranks: Sequence[int], moment: Tensor | None = None) -> dict[int, Errors]:
    """Compute the least error that an update of R directions can have, for each R: the tail of the spectrum.

    The best approximation of rank R keeps the R largest singular values, so sigma_{R+1} remains in spectral norm and
    sqrt(sum_{i>R} sigma_i^2) in Frobenius norm. Weighted by the layer's inputs x, the mean of ||(D - E) x||^2 is
    ||(D - E) C^{1/2}||_F^2 with C = mean of x x^T, so the tail is that of D C^{1/2}. The three minima are reached by
    different updates in general.

    Args:
        update: D = W_FT - W_0, `(d_out, d_in)`; not mutated. Computed in float64.
        ranks: numbers of directions, >= 0; 0 gives the norms of D itself.
        moment: C, `(d_in, d_in)`, symmetric and positive semidefinite; None leaves the weighted error out.

    Returns:
        By rank; zeros from the rank of D on.

    Example:
        >>> errors = attainable_errors(torch.diag(torch.tensor([5.0, 4.0, 3.0])), ranks=[1, 3])
        >>> errors[1]
        Errors(spectral=4.0, frobenius=5.0, weighted=None)
        >>> errors[3].spectral
        0.0

    Source:
        Eckart and Young, Psychometrika 1, 1936; Mirsky 1960 for the spectral norm. That this bounds LoRA: Zeng and
        Lee, The Expressive Power of Low-Rank Adaptation, arXiv:2310.17513.
    """
    sigma = torch.linalg.svdvals(update.double())
    weighted = None if moment is None else torch.linalg.svdvals(update.double() @ root_of(moment))
    return {
        rank: Errors(
            spectral=float(sigma[rank]) if rank < len(sigma) else 0.0,
            frobenius=float(sigma[rank:].norm()),
            weighted=None if weighted is None else float(weighted[rank:].norm()),
        )
        for rank in ranks
    }


def errors_of(missing: Tensor, moment: Tensor | None = None) -> Errors:
    """Measure what an update misses.

    Args:
        missing: D - s B A, `(d_out, d_in)`; not mutated.
        moment: as for `attainable_errors`.

    Example:
        >>> errors_of(torch.diag(torch.tensor([3.0, 4.0])), moment=torch.eye(2))
        Errors(spectral=4.0, frobenius=5.0, weighted=5.0)
    """
    return attainable_errors(missing, [0], moment)[0]


def layer_gap(
    name: str,
    update: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
    ranks: Sequence[int] = (),
    moment: Tensor | None = None,
) -> LayerGap:
    """Compare what an adapter achieved on a layer with what was attainable.

    Args:
        name: of the layer.
        update: D = W_FT - W_0, `(d_out, d_in)`.
        A: `(r, d_in)`.
        B: `(d_out, r)`.
        scale: s in dW = s B A.
        ranks: further numbers of directions to tell the attainable error of.
        moment: as for `attainable_errors`.

    Example:
        >>> D = torch.diag(torch.tensor([2.0, 1.0]))
        >>> gap = layer_gap("q", D, A=torch.tensor([[0.0, 1.0]]), B=torch.tensor([[0.0], [1.0]]), scale=1.0)
        >>> gap.achieved.frobenius, gap.attainable[1].frobenius, gap.excess
        (2.0, 1.0, 2.0)
    """
    d_out, d_in = update.shape
    r = len(A)
    least = attainable_errors(update, sorted({0, r, *ranks}), moment)
    missing = update.double() - scale * (B.double() @ A.double())
    wanted = {rank: errors for rank, errors in least.items() if rank == r or rank in ranks}
    return LayerGap(name, d_out, d_in, r, least[0], errors_of(missing, moment), wanted)


def root_of(moment: Tensor) -> Tensor:
    """Return the symmetric square root of a second moment, in float64; rounding below zero counts as 0.

    Example:
        >>> root_of(torch.diag(torch.tensor([4.0, 9.0])))
        tensor([[2., 0.],
                [0., 3.]], dtype=torch.float64)
    """
    values, vectors = torch.linalg.eigh(moment.double())
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    return root
