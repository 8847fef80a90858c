"""LoRA-RITE's step: Adam for the product B A, the same whichever factors stand for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmlora.errors import MethodError
from rmlora.pairs import Factors, Stack
from rmlora.transform import Context, Moments, State, Transform


@dataclass(frozen=True)
class Frames:
    """QR of both factors, `A^T = basis.A R_A` and `B = basis.B R_B`, of n pairs.

    Attributes:
        basis: A `(n, d_in, k_A)` and B `(n, d_out, k_B)`, orthonormal columns, k = min(d, r).
        inverse: pseudo-inverses of R_A and R_B, A `(n, r, k_A)` and B `(n, r, k_B)`.
    """

    basis: Factors
    inverse: Factors


def frame_factors(factors: Factors) -> Frames:
    """Take QR of both factors of every pair.

    Args:
        factors: A `(n, r, d_in)` and B `(n, d_out, r)`, float32 or float64.

    Returns:
        Bases and pseudo-inverses; singular values that rounding may have made count as zero, so the inverse of a
        factor that is zero is zero.

    Example:
        >>> frames = frame_factors(Factors(torch.eye(2)[None], torch.zeros(1, 3, 2)))
        >>> frames.inverse.A.abs()[0], frames.inverse.B.any()
        (tensor([[1., 0.],
                [0., 1.]]), tensor(False))

    Source:
        LoRA-RITE, arXiv:2410.20625; gkevinyen5418/LoRA-RITE, lora_rite.py. Deviation: the tolerance of the inverse is
        that of the whole factor, max(d, r) rounding errors of its largest singular value, rather than that of R.
    """
    sides = factors.A.mT, factors.B
    (Q_A, R_A), (Q_B, R_B) = (torch.linalg.qr(side) for side in sides)
    small = [max(side.shape[1:]) * torch.finfo(side.dtype).eps for side in sides]
    inverses = torch.linalg.pinv(R_A, rtol=small[0]), torch.linalg.pinv(R_B, rtol=small[1])
    return Frames(Factors(Q_A, Q_B), Factors(*inverses))


def precondition_factors(
    unmagnified: Tensor,
    turn: Tensor,
    state: tuple[Tensor, Tensor, Tensor | None],
    decays: tuple[Tensor, Tensor],
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Advance one side's moments by a step: carried into the new basis, then moved towards the gradient.

    With P the turn and U the unmagnified gradient, `V <- b2 P V P^T + (1 - b2) U^T U / d` and
    `M <- b1 M P^T + (1 - b1) U (V + e)^(-1/2)`. M is the step in the other factor's basis.

    Args:
        unmagnified: U `(n, d, k)`, the gradient times the inverse of the other factor's R.
        turn: P `(n, k, k)`, the new basis of the other factor times the old one.
        state: M `(n, d, k)`, V `(n, k, k)`, and the escaped mass e `(n, 1)` or None for a method without.
        decays: b1 and b2 `(n, 1, 1)`, bias-corrected.
        epsilon: added to the square roots of V's eigenvalues, > 0, in gradient units.

    Returns:
        M, V and e after the step; nothing is written in place.

    Example:
        >>> zero, one = torch.zeros(1, 2, 1), torch.ones(1, 1, 1)
        >>> start = (zero, torch.zeros(1, 1, 1), None)
        >>> precondition_factors(zero + 3.0, one, start, (0 * one, 0 * one))[0].squeeze()
        tensor([1.0000, 1.0000])

    Source:
        LoRA-RITE, arXiv:2410.20625; gkevinyen5418/LoRA-RITE, lora_rite.py. Deviation: there is no step along
        eigenvectors of V whose eigenvalue rounding may have made (k rounding errors of the largest). Without that, a
        batch of fewer tokens than directions makes steps of noise; and the released code takes the square root of
        eigenvalues that rounding made negative.
    """
    momentum, second, escaped = state
    momentum_decay, second_decay = decays
    turned = _symmetric(turn @ second @ turn.mT)
    if escaped is not None:
        escaped = second_decay.squeeze(2) * (escaped + _escaped(second, turned))
    fresh = unmagnified.mT @ unmagnified / unmagnified.shape[1]
    second = _symmetric(torch.lerp(fresh, turned, second_decay))
    values, vectors = torch.linalg.eigh(second)
    noise = values.shape[1] * torch.finfo(values.dtype).eps * values[:, -1:]
    damped = values.clamp(min=0.0) + (0.0 if escaped is None else escaped)
    weights = torch.where(values > noise, 1.0 / (damped.sqrt() + epsilon), 0.0)
    step = unmagnified @ (vectors * weights.unsqueeze(1) @ vectors.mT)
    return torch.lerp(step, momentum @ turn.mT, momentum_decay), second, escaped


@dataclass(frozen=True)
class PreconditionFactors(Transform):
    """Link: compute the step of A and B by LoRA-RITE, and discard the optimizer's own.

    The step depends on the product B A alone: replacing (A, B) by (R A, B R^-1) with any invertible R changes nothing
    about dW, now or later. Its rate is the optimizer's, A's and B's by their groups; the optimizer's update, moments
    and weight decay of the factors are discarded. Links that change gradients stand in front of it, and none may mask
    directions: rows of A keep no identity from step to step.

    At B = 0 the inverse of R_B is taken as zero, so that B moves first, then A. Work is done in float32 at least.

    Attributes:
        beta_1: decay of the momentum, 0 <= beta_1 < 1, bias-corrected.
        beta_2: decay of the second moments, 0 <= beta_2 < 1, bias-corrected.
        epsilon: added to the square roots of the second moments' eigenvalues, > 0, in gradient units.
        max_rms: a pair's unmagnified gradient of A or B with a root mean square above this counts as zero in this
            step, > 0; None keeps all that are finite.
        max_norm: the unmagnified gradients of the whole adapter are scaled down to this joint norm, > 0; None never.
        weight_decay: decoupled decay of A and B, >= 0, times the rate; 0 is none.
        escaped_mass: whether second moments that leave the basis when it turns go on damping the step.

    Raises:
        MethodError: a value is out of range; in `chain`, when another link masks directions.

    Example:
        >>> PreconditionFactors().max_norm
        1.0

    Source:
        LoRA-RITE, arXiv:2410.20625; gkevinyen5418/LoRA-RITE, lora_rite.py, whose defaults these are. Deviations: each
        factor has its group's rate; a pair counts the steps it took part in; a gradient that is not finite counts as
        zero; see `precondition_factors`. Not built: its capping of updates and balancing of norms, off there.
    """

    owns_update: ClassVar[bool] = True
    mixes_directions: ClassVar[str] = "rank coordinates rotate"

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    max_rms: float | None = 1.0
    max_norm: float | None = 1.0
    weight_decay: float = 0.0
    escaped_mass: bool = False

    def __post_init__(self) -> None:
        for name, beta in (("beta_1", self.beta_1), ("beta_2", self.beta_2)):
            if not 0.0 <= beta < 1.0:
                raise MethodError(f"{name}={beta}; a decay lies in [0, 1)")
        if not self.epsilon > 0.0:
            raise MethodError(f"epsilon={self.epsilon}; it must be > 0, as second moments start from zero")
        for name, limit in (("max_rms", self.max_rms), ("max_norm", self.max_norm)):
            if limit is not None and not limit > 0.0:
                raise MethodError(f"{name}={limit}; it must be > 0 (None switches it off)")
        if not self.weight_decay >= 0.0:
            raise MethodError(f"weight_decay={self.weight_decay}; it must be >= 0 (0 is none)")

    def init(self, pairs: Sequence[Stack]) -> State:
        """Start from zero moments, in float32 at least."""
        return tuple(self._fresh(stack) for stack in pairs)

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Remember the gradients, free of the loss scale, until the optimizer has stepped."""
        remembered = [
            {**tensors, "gradient_A": _wide(g.A) / ctx.loss_scale, "gradient_B": _wide(g.B) / ctx.loss_scale}
            for tensors, g in zip(state, grads, strict=True)
        ]
        return grads, tuple(remembered)

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Take the step from the factors before the optimizer's."""
        started = [Factors(_wide(f.A), _wide(f.B)) for f in after]
        frames = [frame_factors(f) for f in started]
        unmagnified = self._unmagnify(state, frames)
        moved, latest = [], []
        for i, tensors in enumerate(state):
            steps, tensors_after = self._advance(tensors, frames[i], unmagnified[i])
            A, B = (
                start - rate * (step + self.weight_decay * start)
                for start, step, rate in zip((started[i].A, started[i].B), steps, ctx.lr[i], strict=True)
            )
            moved.append(Factors(A.to(after[i].A.dtype), B.to(after[i].B.dtype)))
            latest.append(tensors_after)
        return moved, moments[1], tuple(latest)

    def _unmagnify(self, state: State, frames: Sequence[Frames]) -> list[tuple[Tensor, Tensor]]:
        """Gradients in the other factor's basis, `(n, d_in, k_B)` and `(n, d_out, k_A)`; skipped and clipped."""
        found = [
            (self._skip(t["gradient_A"].mT @ f.inverse.B), self._skip(t["gradient_B"] @ f.inverse.A))
            for t, f in zip(state, frames, strict=True)
        ]
        if self.max_norm is None:
            return found
        device = found[0][0].device
        norm = torch.stack([torch.linalg.vector_norm(u).to(device) for both in found for u in both]).norm()
        factor = torch.where(norm > self.max_norm, self.max_norm / norm, 1.0)
        return [(A * factor.to(A), B * factor.to(B)) for A, B in found]

    def _skip(self, gradient: Tensor) -> Tensor:
        size = gradient.square().mean(dim=(1, 2), keepdim=True).sqrt()
        usable = size.isfinite() if self.max_rms is None else size <= self.max_rms
        return torch.where(usable, gradient, 0.0)

    def _advance(
        self, tensors: dict[str, Tensor], frames: Frames, unmagnified: tuple[Tensor, Tensor]
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Move the moments of both sides; return the steps of A and B, of the factors' shapes, and the new state."""
        counted = (tensors["steps"] + 1).to(frames.basis.A.dtype).view(-1, 1, 1)
        decays = _corrected(self.beta_1, counted), _corrected(self.beta_2, counted)
        latest = {"steps": tensors["steps"] + 1, "basis_A": frames.basis.A, "basis_B": frames.basis.B}
        turns = (
            frames.basis.B.mT @ tensors["basis_B"],
            frames.basis.A.mT @ tensors["basis_A"],
        )
        for side, gradient, turn in zip("AB", unmagnified, turns, strict=True):
            carried = tensors[f"momentum_{side}"], tensors[f"second_{side}"], tensors.get(f"escaped_{side}")
            momentum, second, escaped = precondition_factors(gradient, turn, carried, decays, self.epsilon)
            latest |= {f"momentum_{side}": momentum, f"second_{side}": second}
            latest |= {} if escaped is None else {f"escaped_{side}": escaped}
        step_A = frames.inverse.B @ latest["momentum_A"].mT
        step_B = latest["momentum_B"] @ frames.inverse.A.mT
        # In one layout, so that a resumed run, whose tensors are read anew, rounds as one that never stopped.
        return (step_A, step_B), {key: value.contiguous() for key, value in latest.items()}

    def _fresh(self, stack: Stack) -> dict[str, Tensor]:
        A, B = stack.pairs[0].A, stack.pairs[0].B
        num, d_in, d_out = len(stack), A.shape[1], B.shape[0]
        k_A, k_B = min(d_in, stack.r), min(d_out, stack.r)
        dtype = torch.promote_types(A.dtype, torch.float32)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(num, *shape, dtype=dtype, device=A.device)

        fresh = {"steps": zeros().to(torch.int64), "basis_A": zeros(d_in, k_A), "basis_B": zeros(d_out, k_B)}
        fresh |= {"momentum_A": zeros(d_in, k_B), "momentum_B": zeros(d_out, k_A)}
        fresh |= {"second_A": zeros(k_B, k_B), "second_B": zeros(k_A, k_A)}
        return fresh | ({"escaped_A": zeros(1), "escaped_B": zeros(1)} if self.escaped_mass else {})


def _corrected(beta: float, steps: Tensor) -> Tensor:
    """The decay under which a running mean that started from zero needs no correction; 0 at the first step."""
    return beta * (1.0 - beta ** (steps - 1.0)) / (1.0 - beta**steps)


def _escaped(old: Tensor, turned: Tensor) -> Tensor:
    """What second moments lost when the basis turned, `(n, 1)`: in trace, or in the most reduced eigenvalue."""
    by_value = (torch.linalg.eigvalsh(old) - torch.linalg.eigvalsh(turned)).amax(dim=1)
    traces = [second.diagonal(dim1=1, dim2=2).sum(dim=1) for second in (old, turned)]
    return torch.minimum(by_value.clamp(min=0.0), (traces[0] - traces[1]).clamp(min=0.0)).unsqueeze(1)


def _symmetric(second: Tensor) -> Tensor:
    return (second + second.mT) / 2.0


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
