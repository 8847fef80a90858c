"""The orthogonality penalty of RM-LoRA, as a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rmlora.errors import MethodError
from rmlora.pairs import Factors, Stack
from rmlora.schedules import Scalar, value_at
from rmlora.transform import Context, Rows, State, Transform

Norm = Literal["squared", "frobenius"]
Reduction = Literal["sum", "mean"]
Gram = Literal["whole", "off_diagonal"]


def add_orthogonality(
    grads: Factors,
    factors: Factors,
    weight: float | Tensor,
    *,
    norm: Norm = "squared",
    gram: Gram = "whole",
) -> Factors:
    r"""Add the gradient of the orthogonality penalty to the factor gradients.

    R(A, B) = ||A A^T - I||_F^2 + ||B^T B - I||_F^2 pulls a pair's r directions apart, so that no rank is spent twice.
    Closed form, so no second backward pass: dR/dA = 4 (A A^T - I) A and dR/dB = 4 B (B^T B - I).

    Args:
        grads: task gradients, A `(n, r, d_in)` and B `(n, d_out, r)`, in loss per weight.
        factors: the factors themselves; same shapes and device.
        weight: penalty strength in loss units, >= 0; 0 changes nothing. Like any gradient it is scaled by the
            learning rate (not decoupled).
        norm: "squared", or "frobenius" for the norm itself, whose gradient is 2 (A A^T - I) A / ||A A^T - I||_F and
            0 at exact orthonormality.
        gram: "whole" pulls rows of A and columns of B to length 1 and apart; "off_diagonal" only apart.

    Returns:
        New gradients in the dtype of `grads`; nothing is written in place. Products are taken in float32 at least.

    Raises:
        MethodError: `norm` or `gram` is not one of the names above.

    Example:
        >>> A = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])  # two equal directions
        >>> zero = Factors(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
        >>> add_orthogonality(zero, Factors(A, torch.eye(2)[None]), weight=0.5).A
        tensor([[[2., 0.],
                 [2., 0.]]])

    Source:
        RM-LoRA, arXiv:2407.12074, Eq. 10. Deviation: the authors' code averages norms that are not squared over all
        factors; that is `norm="frobenius"` here and `reduction="mean"` of `AddOrthogonality`.
    """
    added = orthogonality_gradient(factors, weight, norm=norm, gram=gram)
    return Factors((grads.A + added.A).to(grads.A.dtype), (grads.B + added.B).to(grads.B.dtype))


def orthogonality_gradient(
    factors: Factors,
    weight: float | Tensor,
    rows: Rows | None = None,
    *,
    norm: Norm = "squared",
    gram: Gram = "whole",
) -> Factors:
    """Return what `add_orthogonality` adds, of some directions only if so asked.

    Of k directions the squared norm costs k / r of the work: their gradient needs their rows of the Gram matrix alone.

    Args:
        factors: A `(n, r, d_in)` and B `(n, d_out, r)`.
        weight: penalty strength in loss units, >= 0.
        rows: int64 `(n, k)`, the directions of A and of B; None for all.
        norm: as in `add_orthogonality`.
        gram: likewise.

    Returns:
        A `(n, k, d_in)` and B `(n, d_out, k)`, in float32 at least.

    Raises:
        MethodError: `norm` or `gram` is unknown.

    Example:
        >>> A = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        >>> second = torch.tensor([[1]])
        >>> orthogonality_gradient(Factors(A, A.mT), 0.5, (second, second)).A
        tensor([[[2., 0.]]])
    """
    _check("norm", norm, Norm)
    _check("gram", gram, Gram)
    if isinstance(weight, Tensor):
        weight = weight.to(factors.A.device)
    A = factors.A.to(torch.promote_types(factors.A.dtype, torch.float32))
    B = factors.B.to(A.dtype).mT
    (pull_A, pull_B) = (_pull(X, None if rows is None else rows[side], norm, gram) for side, X in enumerate((A, B)))
    # The small factor is scaled, not the large product.
    return Factors((weight * pull_A) @ A, ((weight * pull_B) @ B).mT)


def _pull(X: Tensor, rows: Tensor | None, norm: Norm, gram: Gram) -> Tensor:
    """What the r rows of X `(n, r, d)` are multiplied by to give the penalty's gradient of k of them, `(n, k, r)`."""
    index = None if rows is None else rows.unsqueeze(2)
    if norm == "frobenius":
        pull = _off_identity(X, X, torch.arange(X.shape[1], device=X.device).view(1, -1, 1), gram)
        length = pull.norm(dim=(-2, -1), keepdim=True)
        # At exact orthonormality the norm has a kink; 0 is the subgradient autograd gives there, too.
        pull = torch.where(length > 0, 2.0 * pull / length, torch.zeros_like(pull))
        return pull if index is None else torch.take_along_dim(pull, index, 1)
    if index is None:
        index = torch.arange(X.shape[1], device=X.device).view(1, -1, 1)
        return 4.0 * _off_identity(X, X, index, gram)
    return 4.0 * _off_identity(torch.take_along_dim(X, index, 1), X, index, gram)


def _off_identity(some: Tensor, X: Tensor, index: Tensor, gram: Gram) -> Tensor:
    """Rows `index` `(., k, 1)` of the Gram matrix of X, minus those of the identity, or with zeros in their place."""
    rows = some @ X.mT
    index = index.expand(*rows.shape[:2], 1)
    return (
        rows.scatter(2, index, 0.0)
        if gram == "off_diagonal"
        else rows.scatter_add(2, index, -rows.new_ones(index.shape))
    )


@dataclass(frozen=True)
class AddOrthogonality(Transform):
    """Link: add the orthogonality penalty's gradient at every optimizer step.

    It acts once per optimizer step, whatever the accumulation, and never shows in the loss that the trainer logs;
    `handle.metrics()` reports the penalty. It comes after the trainer's own clipping: to clip it too, turn that
    off and put `ClipByGlobalNorm` behind this link.

    Attributes:
        weight: strength, >= 0, or a schedule; 0 skips the link.
        norm: "squared" or "frobenius"; see `add_orthogonality`.
        reduction: "sum" over modules, or "mean" over all A and B matrices of the adapter.
        gram: "whole" or "off_diagonal".

    Raises:
        MethodError: the weight is negative or not finite, or a name is unknown.

    Example:
        >>> AddOrthogonality(1e-3, norm="frobenius").weight
        0.001

    Source:
        RM-LoRA, arXiv:2407.12074, Eq. 10.
    """

    weight: Scalar = 1e-4
    norm: Norm = "squared"
    reduction: Reduction = "sum"
    gram: Gram = "whole"

    def __post_init__(self) -> None:
        if not callable(self.weight) and not (0.0 <= self.weight < math.inf):
            raise MethodError(
                f"weight of the orthogonality penalty is {self.weight}; it must be finite and >= 0 "
                "(0 switches it off; a negative one rewards collapse)"
            )
        _check("norm", self.norm, Norm)
        _check("reduction", self.reduction, Reduction)
        _check("gram", self.gram, Gram)

    def hooks(self) -> frozenset[str]:
        """`adds`, unless the weight is the number 0."""
        return frozenset() if not callable(self.weight) and self.weight == 0.0 else frozenset({"adds"})

    def adds(self, state: State, pairs: Sequence[Stack], ctx: Context) -> Sequence[Factors]:
        """Return the penalty's gradient, scaled as the gradients are."""
        weight = value_at(self.weight, ctx.step)
        if self.reduction == "mean":
            weight = weight / (2 * ctx.num_pairs)
        strength = weight * ctx.loss_scale
        rows = ctx.rows or (None,) * len(pairs)
        return [
            orthogonality_gradient(p.factors, strength, r, norm=self.norm, gram=self.gram)
            for p, r in zip(pairs, rows, strict=True)
        ]


def _check(field: str, value: str, names: object) -> None:
    if value not in get_args(names):
        raise MethodError(f'{field}="{value}" is not one of {list(get_args(names))}')
