"""CLoRA's penalty: keep A and B out of fixed random subspaces, so that the update changes less of what a layer does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmlora.draws import draw_directions, hash_scores
from rmlora.errors import MethodError
from rmlora.pairs import Factors, Stack
from rmlora.schedules import Scalar, value_at
from rmlora.transform import Context, State, Transform

# Negative, because the counter of a mask's draw, an optimizer step, never is.
_SIGNS, _COLUMNS = -1, -2
_SIDE_A, _SIDE_B = 0, 1


def avoid_subspaces(
    grads: Factors, factors: Factors, weight: float | Tensor, keys: Tensor, dimensions: int, seed: int = 0
) -> Factors:
    r"""Add the gradient of CLoRA's penalty to the factor gradients.

    The penalty is weight / 2 (||A P_in||_F^2 + ||B^T P_out||_F^2) with fixed random P_in `(d_in, k)` and P_out
    `(d_out, k)` whose columns are orthonormal; its gradient is weight A P_in P_in^T and weight P_out P_out^T B.

    P is never made. It is D H S: H the orthonormal Hartley transform, which is symmetric and its own inverse, D random
    signs, S the choice of k of H's columns. So A P P^T is two transforms of A's rows with a selection between, and the
    signs and the choice are hashes of (seed, module, side). On one core, for 8 pairs of 32 x 4096 and k = 512, drawing
    took 4 ms and applying 10 to 12 ms; a product with a stored dense P took 52 ms, and making one dense P 440 ms.

    Args:
        grads: task gradients, A `(n, r, d_in)` and B `(n, d_out, r)`, in loss per weight.
        factors: the factors themselves; same shapes and device.
        weight: penalty strength in loss units, >= 0; 0 changes nothing. Scaled by the learning rate (not decoupled).
        keys: int64 `(n, 2)`, the pairs' words for `rmlora.draws`.
        dimensions: k, >= 1; where a side has no more features, all of it is avoided.
        seed: another seed gives other subspaces.

    Returns:
        New gradients in the dtype of `grads`; nothing is written in place. Computed in float32 at least.

    Example:
        >>> factors = Factors(torch.ones(1, 2, 3), torch.ones(1, 3, 2))
        >>> zero = Factors(torch.zeros(1, 2, 3), torch.zeros(1, 3, 2))
        >>> avoid_subspaces(zero, factors, 0.5, torch.tensor([[1, 2]]), dimensions=3).A.round(decimals=4)
        tensor([[[0.5000, 0.5000, 0.5000],
                 [0.5000, 0.5000, 0.5000]]])

    Source:
        CLoRA, arXiv:2410.16801, and the authors' `CLoraWrapper`. Deviation: P is a random signed trigonometric basis,
        not uniform over all orthonormal ones.
    """
    A = project_on_subspace(factors.A, keys, dimensions, seed, _SIDE_A)
    B = project_on_subspace(factors.B.mT, keys, dimensions, seed, _SIDE_B).mT
    return Factors(
        (grads.A + (weight * A).to(grads.A.dtype)),
        (grads.B + (weight * B).to(grads.B.dtype)),
    )


def project_on_subspace(rows: Tensor, keys: Tensor, dimensions: int, seed: int, side: int) -> Tensor:
    """Return x P P^T of every row x: its part inside the random subspace of its pair.

    Args:
        rows: `(n, r, d)`.
        keys: int64 `(n, 2)`.
        dimensions: of the subspace, >= 1; at d or more the rows come back as they are.
        seed: of the draw.
        side: 0 for A, 1 for B.

    Example:
        >>> x = torch.ones(1, 1, 8)
        >>> inside = project_on_subspace(x, torch.tensor([[1, 2]]), 3, seed=0, side=0)
        >>> torch.allclose(project_on_subspace(inside, torch.tensor([[1, 2]]), 3, seed=0, side=0), inside, atol=1e-6)
        True
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    d = rows.shape[-1]
    if dimensions >= d:
        return rows
    signs = (hash_scores(keys, d, seed, _SIGNS, side) % 2 * 2 - 1).to(rows.dtype).unsqueeze(1)
    chosen = draw_directions(keys, d, dimensions, seed, _COLUMNS, side).unsqueeze(1)
    return signs * _hartley(torch.where(chosen, _hartley(signs * rows), 0.0))


def _hartley(x: Tensor) -> Tensor:
    """Multiply by `(cos + sin)(2 pi j k / d) / sqrt(d)`, along the last dimension."""
    half = torch.fft.rfft(x, norm="ortho")
    mirrored = (half.real + half.imag)[..., 1 : (x.shape[-1] + 1) // 2].flip(-1)
    return torch.cat([half.real - half.imag, mirrored], dim=-1)


@dataclass(frozen=True)
class AvoidSubspaces(Transform):
    """Link: pull A and B out of fixed random subspaces at every optimizer step.

    An update that is zero on k directions of the input, and gives nothing in k directions of the output, changes the
    layer's outputs less; CLoRA asks for both softly, against forgetting. It acts once per optimizer step, whatever the
    accumulation, and never shows in the loss that the trainer logs. It comes after the trainer's own clipping. It
    remembers nothing: the subspaces are functions of (seed, module), drawn again at each step.

    Attributes:
        weight: strength, >= 0, or a schedule; 0 skips the link.
        dimensions: k, of each subspace, an int >= 1. A side with no more features than that is avoided whole, which is
            weight decay of that factor as part of the gradient.

    Raises:
        MethodError: the weight is negative or not finite, or `dimensions` is not a count.

    Example:
        >>> AvoidSubspaces(0.5, dimensions=64).dimensions
        64

    Source:
        CLoRA, arXiv:2410.16801. Deviations: see `avoid_subspaces`; the penalty is added as a gradient, after clipping.
    """

    weight: Scalar = 1.0
    dimensions: int = 128

    def __post_init__(self) -> None:
        if not callable(self.weight) and not (0.0 <= self.weight < math.inf):
            raise MethodError(f"weight of the subspace penalty is {self.weight}; it must be finite and >= 0")
        if not isinstance(self.dimensions, int) or isinstance(self.dimensions, bool) or self.dimensions < 1:
            raise MethodError(f"dimensions={self.dimensions!r}; it counts the columns of each subspace, an int >= 1")

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
        strength = weight * ctx.loss_scale
        added = [
            avoid_subspaces(
                g,
                p.factors,
                strength.to(g.A.device) if isinstance(strength, Tensor) else strength,
                p.keys,
                self.dimensions,
                ctx.seed,
            )
            for g, p in zip(grads, pairs, strict=True)
        ]
        return added, state
