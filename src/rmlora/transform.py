"""The one contract: a method is a chain of transforms over factor pairs.

A `Transform` is a frozen dataclass of scalars. It overrides the hooks it needs and leaves the others alone; what it
remembers lives in the state that `init` returns, never on itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rmlora.pairs import Factors, Kept, Stack

State = tuple[dict[str, Tensor], ...]
"""What a transform remembers: one dict per stack; every tensor has the stack's leading dimension n.

A tensor that requires a gradient is a leaf: backward accumulates into its `.grad`, and `project` moves it.
"""

Moments = tuple[dict[str, Factors], ...]
"""The optimizer's per-element state of the pairs (`exp_avg`, ...): one dict per stack."""

Rows = tuple[Tensor, Tensor]
"""Positions of kept directions in A and in B, int64 `(n, k)` each."""

HOOKS = ("begin", "inputs", "ranks", "outputs", "blocks", "keep", "adds", "grads", "project", "fold")

REPLICATED = "replicated batches"
"""What a method with several instances needs: every batch repeated, once for each."""


@dataclass(frozen=True)
class Context:
    """What a hook may know about the step it takes part in.

    Attributes:
        step: optimizer steps completed before this one; 0 at the first.
        seed: the seed given to `attach`.
        num_pairs: pairs of the whole adapter, for averages over modules.
        lr: learning rates of this step, (for A, for B) per stack: floats, or tensors `(n, 1, 1)` where the
            optimizer's groups differ within the stack.
        loss_scale: what gradients are multiplied by when the hook sees them (1 unless a fused optimizer unscales
            by itself); whatever is added to a gradient must be multiplied by it.
        leaf_scale: what gradients of leaves in the state are multiplied by: the loss scale, also where a scaler has
            divided those of the parameters already.
        kept: the directions that get a gradient this step, per stack; None where all do.
        rows: their positions, int64 `(n, k)` for A and for B, per stack; None where all do, or where the pairs of a
            stack keep different numbers.
        shared_moments: names of optimizer state kept per row or column rather than per element (Adafactor).
    """

    step: int
    seed: int
    num_pairs: int
    lr: tuple[tuple[float | Tensor, float | Tensor], ...] = ()
    loss_scale: float | Tensor = 1.0
    leaf_scale: float | Tensor = 1.0
    kept: tuple[Kept | None, ...] = ()
    rows: tuple[Rows | None, ...] = ()
    shared_moments: tuple[str, ...] = ()


@dataclass(frozen=True)
class ForwardContext:
    """What a forward hook may know about the pass through one module.

    Attributes:
        name: the pair's name.
        step: optimizer steps completed.
        seed: the seed given to `attach`.
        key: int64 `(1, 2)`, the pair's words for `rmlora.draws`.
        microbatch: training forward passes since the last optimizer step; the same when a checkpointed block is
            recomputed, and never the process rank.
        instance: number of the instance that this pass begins with; 0 unless an entry point counts them.
        training: whether the module is in training mode.
        dim: the dimension of x that holds features or directions: -1, or that of a convolution's channels.
        instances: how many instances of the batch are stacked in this pass, along the first dimension of x: the first
            `1 / instances` of its rows belong to `instance`, the next to `instance + 1`, and so on.
        sampling: whether to draw although not training, for an ensemble of draws.
    """

    name: str
    step: int
    seed: int
    key: Tensor
    microbatch: int
    instance: int
    training: bool
    dim: int = -1
    instances: int = 1
    sampling: bool = False


FORWARD_HOOKS = frozenset({"inputs", "ranks", "outputs", "blocks"})
"""The hooks that act in the forward pass."""


@dataclass(frozen=True)
class Transform:
    """A link of a method; every hook here does nothing.

    Hooks that act at the optimizer step see all stacks at once, so that a global norm is possible. Hooks that act in
    the forward pass see one module. `owns_update` is True for a link that computes the step itself in `project`, from
    the learning rate: the optimizer's own update and decay of the pairs are then discarded. `needs` names what
    attaching alone cannot give (a replicated batch, restarts); `attach` refuses until an entry point provides it.
    `adapts` is the PEFT type of the adapters it can train. `mixes_directions` says why, for a link whose step moves all
    directions of a pair together, so that none can be held still: `chain` refuses it beside a link that masks.
    `gathers` names leaves of the state that let backward add something up, and learn nothing.
    """

    owns_update: ClassVar[bool] = False
    mixes_directions: ClassVar[str] = ""
    gathers: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    adapts: ClassVar[str] = "LORA"

    @property
    def samples(self) -> bool:
        """Whether its forward hooks draw anew for every instance, where `ctx.sampling` says so in evaluation too."""
        return False

    @property
    def multiplies_features(self) -> bool:
        """Whether all its forward hooks do is to multiply each feature by a number that is the same for all rows of an
        instance, and `inputs` and `outputs` are all it has: the engine may then multiply the factors instead."""
        return False

    @property
    def instances(self) -> int:
        """How many draws the loss of one batch is averaged over; more than one needs every batch repeated."""
        return 1

    def hooks(self) -> frozenset[str]:
        """Names of the hooks that act; by default those that the class overrides."""
        return frozenset(name for name in HOOKS if getattr(type(self), name) is not getattr(Transform, name))

    def partition(self, name: str) -> Hashable:
        """Return what must be equal for two pairs to share a stack, beside their shape."""
        return None

    def suited_to(self, config: Any) -> Transform:
        """Return this link with what it leaves open taken from the adapter's PEFT configuration."""
        return self

    def init(self, pairs: Sequence[Stack]) -> State:
        """Return the state before the first step; raise `MethodError` if the pairs do not suit the link."""
        return tuple({} for _ in pairs)

    def begin(self, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Return the factors that training begins with, for a method that does not start from PEFT's own.

        Called once, when attached; what is loaded afterwards (a resumed run) replaces them.
        """
        return factors

    def inputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Change what enters A, `(..., d_in)`. `state` holds this pair's slices."""
        return x

    def ranks(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Change what passes between A and B, `(..., r)`."""
        return x

    def outputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Change what leaves B, `(..., d_out)`, before the scale."""
        return x

    def blocks(self, state: dict[str, Tensor], factors: Factors, ctx: ForwardContext) -> Factors | None:
        """Return further directions beside the pair's own: A `(k, d_in)`, B `(d_out, k)`; None for none.

        The pass becomes `B A x + B_k A_k x`, before the scale. The block sees x as it comes, not what `inputs` makes of
        it, and no `ranks` or `outputs`. `factors` are the live ones, detached: no gradient reaches A and B through a
        block; x gets its own, and so does a leaf in the state. A link with blocks overrides `fold` too, where it puts
        the same directions behind the pair's (`Factors.joined`).
        """
        return None

    def keep(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Return which directions get a gradient this step, per stack; None for all."""
        return tuple(None for _ in pairs)

    def adds(self, state: State, pairs: Sequence[Stack], ctx: Context) -> Sequence[Factors]:
        """Return what to add to the gradients, for a link that reads none: cheaper than `grads`.

        A stack whose positions are known (`ctx.rows`) is given its kept rows of A `(n, k, d_in)` and columns of B
        `(n, d_out, k)` alone; others all r, of which the masked ones are dropped.
        """
        raise NotImplementedError

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Return new gradients; nothing is written in place."""
        return grads, state

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Return what the factors and the optimizer's moments shall be after the step.

        `before` and `after` are the factors around the optimizer's update, `moments` its state before and after.
        Whoever moves directions moves their moments too.
        """
        return after, moments[1], state

    def learning(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Return which directions the step will change, whether masked during backward (`keep`) or later."""
        return self.keep(state, pairs, ctx)

    @property
    def learns_what_is_kept(self) -> bool:
        """Whether `learning` is what `keep` returned, so that it need not be drawn twice."""
        return type(self).learning is Transform.learning

    @property
    def masks_directions(self) -> bool:
        """Whether it lets only some directions learn, during backward or later."""
        return "keep" in self.hooks() or type(self).learning is not Transform.learning

    def restarts(self, before: State, after: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Tensor | None, ...]:
        """Return which pairs begin anew with this step, boolean `(n,)` per stack; None for none.

        Asked after `project`, with the state around it. The optimizer's state of those pairs is set to zero, its step
        count included, as if it had never seen them.
        """
        return tuple(None for _ in pairs)

    def report(self, state: State, pairs: Sequence[Stack]) -> Sequence[dict[str, Tensor]]:
        """Return numbers `(n,)` by name, per stack, that `handle.metrics()` shows; nothing by default."""
        return tuple({} for _ in pairs)

    def freezes_head(self, step: int) -> bool:
        """Whether gradients outside the adapter are zeroed at this step: the authors' bug, and nothing else."""
        return False

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Return factors of plain LoRA that give the outputs this link's forward hooks give in eval mode.

        They may have more than r directions: the first r are the pair's, which other links fold, the others blocks.
        Links with blocks are asked after all others.
        """
        return factors


def spread_factors(part: Factors, rows: Rows | None, r: int) -> Factors:
    """Return kept rows and columns put where they belong among r, zeros between; `part` itself for None.

    Example:
        >>> part = Factors(torch.ones(1, 1, 3), torch.ones(1, 3, 1))
        >>> spread_factors(part, (torch.tensor([[1]]), torch.tensor([[0]])), 2).A[0, :, 0]
        tensor([0., 1.])
    """
    if rows is None:
        return part
    A, B = part.A, part.B
    whole_A = A.new_zeros(len(A), r, A.shape[2]).scatter_(1, rows[0].unsqueeze(2).expand_as(A), A)
    whole_B = B.new_zeros(len(B), B.shape[1], r).scatter_(2, rows[1].unsqueeze(1).expand_as(B), B)
    return Factors(whole_A, whole_B)


def mask_factors(grads: Factors, kept: Kept | None) -> Factors:
    """Return `grads` with zeros where `kept` is False; `grads` itself when all are kept.

    Example:
        >>> ones = Factors(torch.ones(1, 2, 3), torch.ones(1, 3, 2))
        >>> mask_factors(ones, Kept(torch.tensor([[True, False]]), torch.tensor([[False, True]]))).A[0, :, 0]
        tensor([1., 0.])
    """
    if kept is None:
        return grads
    return Factors(
        torch.where(kept.A.unsqueeze(2), grads.A, 0.0),
        torch.where(kept.B.unsqueeze(1), grads.B, 0.0),
    )
