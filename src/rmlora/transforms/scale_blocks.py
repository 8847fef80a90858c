"""SD-LoRA's decoupling: directions of earlier tasks stay, and one learnt magnitude per task scales its block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmlora.errors import MethodError
from rmlora.leaves import adam_state, adam_step, gradient_of
from rmlora.pairs import Factors, Kept, Stack
from rmlora.transform import Context, ForwardContext, Moments, State, Transform


def normalise_direction(factors: Factors) -> Factors:
    """Divide A and B by their Frobenius norms; a factor of zeros stays as it is.

    Args:
        factors: A `(..., r, d_in)` and B `(..., d_out, r)`.

    Returns:
        New factors, each matrix of norm 1.

    Example:
        >>> unit = normalise_direction(Factors(torch.full((1, 4), 3.0), torch.full((4, 1), 5.0)))
        >>> unit.A.norm(), unit.B.norm()
        (tensor(1.), tensor(1.))

    Source:
        SD-LoRA, arXiv:2501.13198, below Eq. 3: the direction of A B is A B / (||A||_F ||B||_F).
    """
    return Factors(_unit(factors.A), _unit(factors.B))


@dataclass(frozen=True)
class ScaleBlocks(Transform):
    """Link: the r directions of every pair are blocks; the last one learns, and so does a magnitude for each block.

    The forward pass is `y = W0 x + s * sum over blocks k of a_k B_k A_k x`. Rows of A and columns of B of all blocks
    but the last get no gradient, and neither momentum nor weight decay moves them. Magnitude a_k is one number for all
    modules. After the optimizer's step on the last block the magnitudes take one of Adam (0.9, 0.999, 1e-8) on the
    gradient summed over modules, at the learning rate of B times `rate`. They live in the state: they resume with the
    optimizer, and a trainer's clipping does not see them. Folding multiplies them into B, exactly; of `r` directions.

    Attributes:
        widths: directions of each block, in the order they lie in A and B; they sum to r.
        start: the magnitudes before the first step: one for all blocks.
        rate: the magnitudes' learning rate as a multiple of that of B, >= 0; 0 holds them still.
        absorbed: by module name, what is added to the magnitude of each block there and does not learn: what a dropped
            block left behind (`rmlora.continual.absorbing`).

    Raises:
        MethodError: a value is out of range; when attached, a module's r is not the sum of `widths`.

    Example:
        >>> ScaleBlocks((8, 8)).start
        0.8

    Source:
        SD-LoRA, arXiv:2501.13198, Eq. 4, as the authors' code (WuYichen-97/SD-Lora-CL) computes it: the last block is
        not normalised, all magnitudes begin at 0.8 (the paper: 1). Deviations: PEFT's scale s stands in front; Adam's
        state of the magnitudes is the engine's own, without weight decay or clipping.
    """

    widths: tuple[int, ...]
    start: float = 0.8
    rate: float = 1.0
    absorbed: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise MethodError(f"widths={self.widths}; give the directions of at least one block, each >= 1")
        if not self.rate >= 0.0:
            raise MethodError(f"rate={self.rate}; it must be >= 0 (0 holds the magnitudes still)")
        wrong = next((name for name, values in self.absorbed if len(values) != len(self.widths)), None)
        if wrong is not None:
            raise MethodError(f"absorbed names another number of blocks than {len(self.widths)} for {wrong}")

    def hooks(self) -> frozenset[str]:
        """Nothing where one block is scaled by 1 for good; no mask for one block."""
        if len(self.widths) == 1 and self.start == 1.0 and self.rate == 0.0 and not self.absorbed:
            return frozenset()
        return super().hooks() - ({"keep"} if len(self.widths) == 1 else set())

    def init(self, pairs: Sequence[Stack]) -> State:
        """Set the magnitudes, in float32 at least: a leaf `(n, blocks)` per stack, with equal rows."""
        for stack in pairs:
            if stack.r != sum(self.widths):
                raise MethodError(
                    f"widths={self.widths} sum to {sum(self.widths)}, but {stack.names[0]} has r={stack.r}"
                )
        return tuple(self._fresh(stack) for stack in pairs)

    def ranks(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Multiply what each block's A gives by the block's magnitude."""
        shape = [1] * x.dim()
        shape[ctx.dim] = -1
        return x * self._spread(state["magnitudes"] + state["absorbed"]).to(x.dtype).view(shape)

    def keep(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Let the last block alone have a gradient."""
        return tuple(Kept(learns, learns.clone(), self.widths[-1]) for learns in map(self._learns, pairs))

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Put the earlier blocks back, and move the magnitudes by a step."""
        restored = [self._restore(*each) for each in zip(pairs, before, after, strict=True)]
        if self.rate == 0.0:
            return restored, moments[1], state
        latest = self._step(state, ctx)
        moved = [tensors | _copies(latest, len(stack), tensors) for tensors, stack in zip(state, pairs, strict=True)]
        return restored, moments[1], tuple(moved)

    def report(self, state: State, pairs: Sequence[Stack]) -> Sequence[dict[str, Tensor]]:
        """Tell `magnitude_1`, `magnitude_2`, ... of each module, without what it absorbed: all modules' are equal."""
        return tuple(
            {f"magnitude_{k}": value for k, value in enumerate(t["magnitudes"].detach().unbind(dim=1), 1)}
            for t in state
        )

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Multiply the magnitudes into the columns of B."""
        scales = [self._spread(t["magnitudes"].detach() + t["absorbed"]).unsqueeze(1) for t in state]
        return [Factors(f.A, (f.B * scale).to(f.B.dtype)) for f, scale in zip(factors, scales, strict=True)]

    def _spread(self, magnitudes: Tensor) -> Tensor:
        """Repeat `(..., blocks)` to `(..., r)`."""
        widths = torch.tensor(self.widths, device=magnitudes.device)
        return magnitudes.repeat_interleave(widths, dim=-1)

    def _step(self, state: State, ctx: Context) -> dict[str, Tensor]:
        """Take a step on the one row of magnitudes that all modules share."""
        grads = [gradient_of(tensors["magnitudes"], ctx.leaf_scale).sum(dim=0, keepdim=True) for tensors in state]
        # Whoever sat out a step has old copies: the one that took part most often is everybody's.
        leading = max(state, key=lambda tensors: int(tensors["steps"].max()))
        row = [int(leading["steps"].argmax())]
        own = {key: leading[key].detach()[row] for key in ("magnitudes", "mean", "variance", "steps")}
        total = torch.stack([grad.to(own["magnitudes"]) for grad in grads]).sum(dim=0)
        rate = ctx.lr[0][1]
        size = rate.flatten()[:1] if isinstance(rate, Tensor) else rate
        stepped, latest = adam_step(own["magnitudes"], total, own, size * self.rate)
        return {"magnitudes": stepped, **latest}

    def _learns(self, stack: Stack) -> Tensor:
        learns = torch.zeros(len(stack), stack.r, dtype=torch.bool, device=stack.keys.device)
        learns[:, -self.widths[-1] :] = True
        return learns

    def _restore(self, stack: Stack, before: Factors, after: Factors) -> Factors:
        learns = self._learns(stack)
        A = torch.where(learns.unsqueeze(2), after.A, before.A)
        return Factors(A, torch.where(learns.unsqueeze(1), after.B, before.B))

    def _fresh(self, stack: Stack) -> dict[str, Tensor]:
        A = stack.pairs[0].parameters[0]
        dtype = torch.promote_types(A.dtype, torch.float32)
        magnitudes = torch.full((len(stack), len(self.widths)), self.start, dtype=dtype, device=A.device)
        told, nothing = dict(self.absorbed), (0.0,) * len(self.widths)
        absorbed = torch.tensor([told.get(name, nothing) for name in stack.names], dtype=dtype, device=A.device)
        return {
            "magnitudes": magnitudes.requires_grad_(self.rate > 0.0),
            "absorbed": absorbed,
            **adam_state(magnitudes),
        }


def _unit(matrices: Tensor) -> Tensor:
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    return matrices / torch.where(norms > 0, norms, 1.0)


def _copies(shared: dict[str, Tensor], num: int, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Repeat what has one row for `num` modules; the magnitudes are a leaf again."""
    copies = {key: row.to(like[key].device).repeat(num, *[1] * (row.dim() - 1)) for key, row in shared.items()}
    copies["magnitudes"].requires_grad_()
    return copies
