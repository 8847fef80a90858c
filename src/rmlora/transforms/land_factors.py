"""PoLAR's landing field: gradients that turn A and B along the orthonormal matrices and pull them back onto them."""

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

Field = Literal["landing", "euclidean"]


def land_factors(
    grads: Factors,
    factors: Factors,
    weight: float | Tensor,
    *,
    field: Field = "landing",
    scale: float | Tensor = 1.0,
) -> Factors:
    r"""Replace gradients of the factors by a field whose flow lands on orthonormal rows of A and columns of B.

    With X `(d, r)` for A^T or B and G for its gradient, "landing" is (G X^T - X G^T) X + weight X (X^T X - I): the
    first term turns X without changing its Gram matrix, the second pulls that to the identity. "euclidean" is
    G + weight X (X^T X - I), a penalty and no more. The `(d, d)` matrix is never made: G (X^T X) - X (G^T X) is the
    first term, too.

    Args:
        grads: task gradients, A `(n, r, d_in)` and B `(n, d_out, r)`.
        factors: the factors themselves; same shapes and device.
        weight: of the pull, >= 0; 0 leaves the turn alone. Both are scaled by the learning rate.
        field: "landing" or "euclidean".
        scale: what `grads` are multiplied by; the pull is, too.

    Returns:
        New gradients in the dtype of `grads`; nothing is written in place. Products are taken in float32 at least.

    Raises:
        MethodError: `field` is not one of the names above.

    Example:
        >>> X = torch.tensor([[[2.0], [0.0]]])
        >>> grads = Factors(torch.zeros(1, 1, 2), torch.tensor([[[1.0], [1.0]]]))
        >>> land_factors(grads, Factors(X.mT, X), weight=0.5).B  # (0, 4) turns, (3, 0) pulls to length 1
        tensor([[[3.],
                 [4.]]])

    Source:
        PoLAR, arXiv:2506.03133, and its released `landing_callback.py`. Deviation: the products are taken in another
        order.
    """
    _check(field)
    return Factors(
        _land(grads.A.mT, factors.A.mT, weight, field, scale).mT.to(grads.A.dtype),
        _land(grads.B, factors.B, weight, field, scale).to(grads.B.dtype),
    )


def _land(G: Tensor, X: Tensor, weight: float | Tensor, field: Field, scale: float | Tensor) -> Tensor:
    X = X.to(torch.promote_types(X.dtype, torch.float32))
    G = G.to(X.dtype)
    gram_RR = X.mT @ X
    pull_RR = gram_RR - torch.eye(gram_RR.shape[-1], dtype=X.dtype, device=X.device)
    strength = weight * scale
    pull = X @ ((strength.to(X) if isinstance(strength, Tensor) else strength) * pull_RR)
    return G + pull if field == "euclidean" else G @ gram_RR - X @ (G.mT @ X) + pull


@dataclass(frozen=True)
class LandFactors(Transform):
    """Link: replace the gradients of A and B by the landing field, before the optimizer's step.

    A and B stay near orthonormal matrices without any projection onto them, so that no direction repeats another and
    none vanishes. The optimizer is the user's; how near they stay depends on it, on its learning rate and on `weight`.
    `MixDirections` gives the update the sizes that orthonormal factors lack, and the start.

    Attributes:
        weight: of the pull, >= 0, or a schedule; the released scripts have 1.0 for GLUE and 5e-3 for LLaMA.
        field: "landing" or "euclidean"; see `land_factors`.

    Raises:
        MethodError: the weight is negative or not finite, or `field` is unknown.

    Example:
        >>> LandFactors(5e-3).field
        'landing'

    Source:
        PoLAR, arXiv:2506.03133; see `land_factors`.
    """

    weight: Scalar = 1.0
    field: Field = "landing"

    def __post_init__(self) -> None:
        if not callable(self.weight) and not (0.0 <= self.weight < math.inf):
            raise MethodError(f"weight of the landing field's pull is {self.weight}; it must be finite and >= 0")
        _check(self.field)

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Return the field, scaled as the gradients are."""
        weight = value_at(self.weight, ctx.step)
        fields = [
            land_factors(g, p.factors, weight, field=self.field, scale=ctx.loss_scale)
            for g, p in zip(grads, pairs, strict=True)
        ]
        return fields, state


def _check(field: str) -> None:
    if field not in get_args(Field):
        raise MethodError(f'field="{field}" is not one of {list(get_args(Field))}')
