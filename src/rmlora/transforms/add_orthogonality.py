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
from rmlora.transform import Context, State, Transform

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
    _check("norm", norm, Norm)
    _check("gram", gram, Gram)
    if isinstance(weight, Tensor):
        weight = weight.to(factors.A.device)
    A = factors.A.to(torch.promote_types(factors.A.dtype, torch.float32))
    B = factors.B.to(A.dtype)
    # The r x r factor is scaled, not the large product, and product and sum are one kernel.
    pull_A = weight * _pull(A @ A.mT, norm, gram)
    pull_B = weight * _pull(B.mT @ B, norm, gram)
    return Factors(
        torch.baddbmm(grads.A.to(A.dtype), pull_A, A).to(grads.A.dtype),
        torch.baddbmm(grads.B.to(A.dtype), B, pull_B).to(grads.B.dtype),
    )


def _pull(gram_RR: Tensor, norm: Norm, gram: Gram) -> Tensor:
    """The symmetric `(n, r, r)` factor that a matrix is multiplied by to give the penalty's gradient."""
    diagonal = gram_RR.diagonal(dim1=-2, dim2=-1)
    diagonal.copy_(torch.zeros_like(diagonal) if gram == "off_diagonal" else diagonal - 1.0)
    if norm == "squared":
        return 4.0 * gram_RR
    length = gram_RR.norm(dim=(-2, -1), keepdim=True)
    # At exact orthonormality the norm has a kink; 0 is the subgradient autograd gives there, too.
    return torch.where(length > 0, 2.0 * gram_RR / length, torch.zeros_like(gram_RR))


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
        """`grads`, unless the weight is the number 0."""
        return frozenset() if not callable(self.weight) and self.weight == 0.0 else frozenset({"grads"})

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Add the penalty's gradient, scaled as the gradients are."""
        weight = value_at(self.weight, ctx.step)
        if weight == 0.0:
            return grads, state
        if self.reduction == "mean":
            weight = weight / (2 * ctx.num_pairs)
        strength = weight * ctx.loss_scale
        added = [
            add_orthogonality(g, p.factors, strength, norm=self.norm, gram=self.gram)
            for g, p in zip(grads, pairs, strict=True)
        ]
        return added, state


def _check(field: str, value: str, names: object) -> None:
    if value not in get_args(names):
        raise MethodError(f'{field}="{value}" is not one of {list(get_args(names))}')
