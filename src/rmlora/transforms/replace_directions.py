"""BeamLoRA: learnt gates find a module's weak directions, and older copies of its strong ones take their place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmlora.errors import MethodError
from rmlora.leaves import adam_state, adam_step, gradient_of
from rmlora.pairs import Factors, Stack
from rmlora.schedules import Scalar, value_at
from rmlora.transform import Context, ForwardContext, Moments, State, Transform

_SLOTS = 2


def choose_replacements(shares: Sequence[Tensor], mass: float) -> list[Tensor]:
    """Say which direction takes whose place: weak ones, beyond a cumulative mass over all modules, a strong one each.

    All shares are sorted together, and those beyond `mass` of their sum are weak. In each module the weakest takes the
    strongest, the next the next, and at most half of its directions are replaced.

    Args:
        shares: per stack `(n, r)`, each row of sum 1.
        mass: in (0, 1]; at 1 nothing is weak.

    Returns:
        Per stack int64 `(n, r)`: whose copy each direction becomes; its own number where it stays.

    Example:
        >>> choose_replacements([torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3]])], mass=0.9)
        [tensor([[0, 1, 0],
                [0, 1, 2]])]

    Source:
        BeamLoRA, arXiv:2502.13604. Deviations: no module loses more than half; who takes whose place is our order.
    """
    together = torch.cat([share.flatten() for share in shares])
    ordered, places = together.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    weak = torch.zeros_like(together, dtype=torch.bool)
    if mass < 1.0:
        weak[places] = before >= mass * together.sum()
    chosen = []
    for share, of_stack in zip(shares, torch.split(weak, [share.numel() for share in shares]), strict=True):
        n, r = share.shape
        order = share.argsort(dim=1, descending=True, stable=True)
        count = of_stack.view(n, r).sum(dim=1, keepdim=True).clamp(max=r // 2)
        targets = order.flip(1)
        sources = torch.where(torch.arange(r, device=share.device) < count, order, targets)
        chosen.append(torch.empty_like(order).scatter_(1, targets, sources))
    return chosen


def replace_directions(now: Factors, old: Factors, origin: Tensor) -> Factors:
    """Give each direction the values that direction `origin` had in `old`; where it is its own origin it stays.

    Args:
        now: A `(n, r, d_in)` and B `(n, d_out, r)`, factors or moments; not changed.
        old: the same shapes.
        origin: int64 `(n, r)`.

    Example:
        >>> now, old = (Factors(torch.full((1, 2, 1), v), torch.full((1, 1, 2), v)) for v in (1.0, 5.0))
        >>> replace_directions(now, old, torch.tensor([[0, 0]])).A.flatten()
        tensor([1., 5.])
    """
    moved = origin != torch.arange(origin.shape[1], device=origin.device)
    A = old.A.gather(1, origin.unsqueeze(2).expand_as(now.A))
    B = old.B.gather(2, origin.unsqueeze(1).expand_as(now.B))
    return Factors(
        torch.where(moved.unsqueeze(2), A.to(now.A.dtype), now.A),
        torch.where(moved.unsqueeze(1), B.to(now.B.dtype), now.B),
    )


@dataclass(frozen=True)
class ReplaceDirections(Transform):
    """Link: gate every direction by a learnt softmax, and let strong directions take the places of weak ones.

    The forward pass is `y = W0 x + s B (g * (A x))` with g = r softmax(scores / temperature), so that gates of a module
    have mean 1. Scores begin at 0 and learn by Adam at the adapter's learning rate. Half an interval after each
    replacement A, B and the optimizer's moments are remembered; at its end the weak directions of all modules (see
    `choose_replacements`) become copies of their module's strong ones as they were then, moments with them. Since the
    original has moved on, copy and original differ. Both get the mean of their scores, and Adam of the scores begins
    anew. Folding multiplies the gates into A.

    Scores and copies live in the state: they resume with the optimizer, and a trainer's clipping does not see the
    scores.

    Attributes:
        interval: optimizer steps between replacements, >= 2.
        total_steps: optimizer steps of the whole training, >= 1: nothing is replaced when less than an interval is
            left. None replaces to the end.
        mass: cumulative share of the gates, over all modules, beyond which a direction is weak, in (0, 1], or a
            schedule; 1 replaces none.
        temperature: of the softmax, > 0; the smaller, the further gates part.

    Raises:
        MethodError: a value is out of range; at the first step, an optimizer whose moments cannot be copied by
            direction.

    Example:
        >>> ReplaceDirections(interval=100, total_steps=1000).is_due(900), ReplaceDirections(interval=100).is_due(950)
        (True, False)

    Source:
        BeamLoRA, arXiv:2502.13604; gccnlp/BeamLoRA. Deviations: moments are copied, where the released code writes them
        into a temporary and copies none; the copy is taken after half an interval, there one step later; no weight
        decay and no clipping of scores; see also `choose_replacements`.
    """

    interval: int = 3000
    total_steps: int | None = None
    mass: Scalar = 0.95
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if not self.interval >= 2:
            raise MethodError(f"interval={self.interval}; it counts optimizer steps between replacements, >= 2")
        if self.total_steps is not None and not self.total_steps >= 1:
            raise MethodError(f"total_steps={self.total_steps}; it counts the optimizer steps of the training, >= 1")
        if not callable(self.mass) and not 0.0 < self.mass <= 1.0:
            raise MethodError(f"mass={self.mass}; it is a share of the gates, > 0 and <= 1 (1 replaces none)")
        if not 0.0 < self.temperature < math.inf:
            raise MethodError(f"temperature={self.temperature}; it must be finite and > 0")

    def is_due(self, done: int) -> bool:
        """Whether directions are replaced after `done` optimizer steps."""
        has_time = self.total_steps is None or self.total_steps - done >= self.interval
        return done % self.interval == 0 and has_time

    def init(self, pairs: Sequence[Stack]) -> State:
        """Begin with scores 0, a leaf of autograd `(n, r)` per stack, and no copies."""
        return tuple(self._fresh(stack) for stack in pairs)

    def ranks(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Multiply what A gives by the gates."""
        shape = [1] * x.dim()
        shape[ctx.dim] = -1
        return x * self._gates(state["scores"]).to(x.dtype).view(shape)

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Move the scores; in the middle of an interval remember, at its end replace."""
        _check_moments(moments[1], ctx)
        latest, moved = moments[1], []
        for tensors, (rate, _) in zip(state, ctx.lr, strict=True):
            grad = gradient_of(tensors["scores"], ctx.leaf_scale)
            scores, memory = adam_step(tensors["scores"].detach(), grad, tensors, rate)
            moved.append(tensors | memory | {"scores": scores})
        done = ctx.step + 1
        if done % self.interval == self.interval // 2:
            moved = [_remember(t, f, m) for t, f, m in zip(moved, after, latest, strict=True)]
        if self.is_due(done):
            after, latest, moved = self._replace(moved, after, latest, value_at(self.mass, ctx.step))
        return after, latest, tuple(t | {"scores": t["scores"].requires_grad_()} for t in moved)

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Multiply the gates into the rows of A."""
        gates = [self._gates(tensors["scores"].detach()).unsqueeze(2) for tensors in state]
        return [Factors((f.A * gate).to(f.A.dtype), f.B) for f, gate in zip(factors, gates, strict=True)]

    def report(self, state: State, pairs: Sequence[Stack]) -> Sequence[dict[str, Tensor]]:
        """Tell `replaced`, the directions replaced so far."""
        return tuple({"replaced": tensors["replaced"]} for tensors in state)

    def _gates(self, scores: Tensor) -> Tensor:
        return scores.shape[-1] * (scores / self.temperature).softmax(dim=-1)

    def _replace(
        self, state: Sequence[dict[str, Tensor]], after: Sequence[Factors], latest: Moments, mass: float
    ) -> tuple[list[Factors], Moments, list[dict[str, Tensor]]]:
        shares = [(tensors["scores"] / self.temperature).softmax(dim=1) for tensors in state]
        origins = [
            torch.where(t["has_copy"].unsqueeze(1), origin, torch.arange(origin.shape[1], device=origin.device))
            for t, origin in zip(state, choose_replacements(shares, mass), strict=True)
        ]
        factors = [
            replace_directions(f, Factors(t["copy_A"], t["copy_B"]), origin)
            for f, t, origin in zip(after, state, origins, strict=True)
        ]
        moments = tuple(
            {
                name: replace_directions(m[name], Factors(t[f"moment_{i}_A"], t[f"moment_{i}_B"]), origin)
                for i, name in enumerate(sorted(m))
            }
            for m, t, origin in zip(latest, state, origins, strict=True)
        )
        return factors, moments, [_share_scores(t, origin) for t, origin in zip(state, origins, strict=True)]

    def _fresh(self, stack: Stack) -> dict[str, Tensor]:
        A, B = stack.pairs[0].A, stack.pairs[0].B
        dtype = torch.promote_types(A.dtype, torch.float32)
        scores = torch.zeros(len(stack), stack.r, dtype=dtype, device=A.device)
        copies = {f"copy_{side}": value for side, value in (("A", A), ("B", B))}
        copies |= {f"moment_{i}_{side}": value for i in range(_SLOTS) for side, value in (("A", A), ("B", B))}
        blank = {
            key: torch.zeros(len(stack), *value.shape, dtype=value.dtype, device=value.device)
            for key, value in copies.items()
        }
        counts = torch.zeros(len(stack), dtype=torch.int64, device=A.device)
        return {
            "scores": scores.requires_grad_(),
            **adam_state(scores),
            **blank,
            "has_copy": counts > 0,
            "replaced": counts,
        }


def _remember(tensors: dict[str, Tensor], factors: Factors, moments: dict[str, Factors]) -> dict[str, Tensor]:
    """Copy factors and moments into the state."""
    copies = {"copy_A": factors.A.clone(), "copy_B": factors.B.clone()}
    for i, name in enumerate(sorted(moments)):
        for side in "AB":
            value = getattr(moments[name], side)
            copies[f"moment_{i}_{side}"] = value.to(tensors[f"moment_{i}_{side}"].dtype, copy=True)
    return tensors | copies | {"has_copy": torch.ones_like(tensors["has_copy"])}


def _share_scores(tensors: dict[str, Tensor], origin: Tensor) -> dict[str, Tensor]:
    """Give copy and original the mean of their scores, and let Adam of the scores begin anew."""
    own = torch.arange(origin.shape[1], device=origin.device).expand_as(origin)
    # The partner of a copy is its original, and the other way round; no original gives two copies.
    partner = origin + torch.zeros_like(origin).scatter_add(1, origin, own - origin)
    scores = tensors["scores"]
    count = (origin != own).sum(dim=1)
    return (
        tensors
        | adam_state(scores)
        | {"scores": (scores + scores.gather(1, partner)) / 2, "replaced": tensors["replaced"] + count}
    )


def _check_moments(moments: Moments, ctx: Context) -> None:
    names = max((sorted(of) for of in moments), key=len, default=[])
    if ctx.shared_moments or len(names) > _SLOTS:
        raise MethodError(
            f"BeamLoRA moves directions with their moments and cannot move {', '.join([*ctx.shared_moments, *names])} "
            "of this optimizer; use AdamW without amsgrad, or SGD"
        )
