"""SD-LoRA-KD: a new direction that earlier ones explain is dropped, and they take over its part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rmlora.continual.learnt import Learnt
from rmlora.pairs import Factors
from rmlora.transforms.scale_blocks import normalise_direction


@dataclass(frozen=True)
class Fit:
    """A module's new direction as a combination of its earlier ones.

    Attributes:
        coefficients: `(k,)` float64, one for each earlier block.
        residual: Frobenius norm of what the combination leaves of the new direction, whose A and B have norm 1.
    """

    coefficients: Tensor
    residual: float


def fit_direction(factors: Factors, widths: Sequence[int]) -> Fit:
    """Fit the last block's direction by those of the others, in the least squares.

    The products B A are never formed: <B_k A_k, B_l A_l> is the sum of (B_k^T B_l) * (A_k A_l^T).

    Args:
        factors: A `(r, d_in)` and B `(d_out, r)` of one module, blocks side by side.
        widths: directions of each block, at least two blocks.

    Example:
        >>> A, B = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.ones(2, 2)
        >>> fit = fit_direction(Factors(A, B), (1, 1))
        >>> [round(value, 6) for value in fit.coefficients.tolist()], round(fit.residual, 6)
        ([1.0], 0.0)

    Source:
        SD-LoRA, arXiv:2501.13198, Eq. 7.
    """
    A, B = torch.split(factors.A.double(), list(widths)), torch.split(factors.B.double(), list(widths), dim=1)
    blocks = [normalise_direction(Factors(*each)) for each in zip(A, B, strict=True)]
    products = torch.stack([torch.stack([_inner(one, other) for other in blocks]) for one in blocks])
    earlier, new = products[:-1, :-1], products[:-1, -1]
    coefficients = torch.linalg.pinv(earlier, hermitian=True) @ new
    left = products[-1, -1] - 2.0 * coefficients @ new + coefficients @ earlier @ coefficients
    return Fit(coefficients, float(left.clamp(min=0.0).sqrt()))


def fit_residuals(learnt: Learnt) -> dict[str, float]:
    """Return the residual of each module's new direction; nothing after the first task."""
    if len(learnt.widths) < 2:
        return {}
    return {name: fit_direction(own, learnt.widths).residual for name, own in learnt.factors.items()}


def absorb_explained(learnt: Learnt, most: float) -> tuple[Learnt, tuple[str, ...]]:
    """Drop the last block of each module whose residual is at most `most`.

    Its factors become zero there, and magnitude k of the module grows by `a n c_k`: c the coefficients, a the block's
    magnitude and n = ||A|| ||B||, so that the outputs stay as near as the fit allows.

    Args:
        learnt: after a task; not changed.
        most: threshold of the residual, >= 0.

    Returns:
        What is left, and the names of the modules that dropped it.

    Source:
        SD-LoRA, arXiv:2501.13198, Eq. 8 and Algorithm 1, for each module by itself. Deviation: Eq. 8 adds c_k alone, as
        the paper's directions are normalised also while they are learned; `a n` is what stands in front of them here.
    """
    if len(learnt.widths) < 2:
        return learnt, ()
    factors, absorbed, dropped = dict(learnt.factors), dict(learnt.absorbed), []
    for name, own in learnt.factors.items():
        fit = fit_direction(own, learnt.widths)
        if fit.residual > most:
            continue
        dropped.append(name)
        start = len(own.A) - learnt.widths[-1]
        size = learnt.magnitudes[-1] * float(own.A[start:].double().norm() * own.B[:, start:].double().norm())
        before = absorbed.get(name, (0.0,) * len(learnt.widths))
        grown = [value + size * float(c) for value, c in zip(before, fit.coefficients, strict=False)]
        absorbed[name] = (*grown, 0.0)
        A, B = own.A.clone(), own.B.clone()
        A[start:], B[:, start:] = 0.0, 0.0
        factors[name] = Factors(A, B)
    return replace(learnt, factors=factors, absorbed=absorbed), tuple(dropped)


def _inner(one: Factors, other: Factors) -> Tensor:
    return ((one.B.mT @ other.B) * (one.A @ other.A.mT)).sum()
