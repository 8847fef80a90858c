"""One optimizer step of one binding, from before the update to after it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rmlora.active import Active, find_active
from rmlora.combine import Chain
from rmlora.optimizers import Group, moments_of, restart, shared_moments, write_moments
from rmlora.pairs import Factors, Kept, Stack
from rmlora.step_hooks import Arguments
from rmlora.transform import Context, Rows, State, mask_factors


@dataclass
class OneStep:
    """What a step has to remember between the optimizer's pre-hook and post-hook.

    Attributes:
        method: the chain.
        state: its state; replaced as hooks return new ones.
        stacks: all pairs.
        ungated: per stack, whether its mask could not act during backward and has to act here.
        kept: this step's masks, per stack.
        rows: the positions they keep, where known.
        base: the context without learning rates and masks.
        groups: the optimizer's groups by parameter.
        active: the pairs that take part; known once gradients are there.
    """

    optimizer: Optimizer
    method: Chain
    state: State
    stacks: Sequence[Stack]
    ungated: Sequence[bool]
    kept: Sequence[Kept | None]
    rows: Sequence[Rows | None]
    base: Context
    groups: dict[int, Group]
    active: Active | None = None
    before: list[Factors] = field(default_factory=list)
    moments: list[dict[str, Factors]] = field(default_factory=list)
    seen: list[Tensor | None] = field(default_factory=list)

    def begin(self, arguments: Arguments) -> Arguments:
        """Remember what `project` compares with, and act on gradients now or, given a closure, after its backward."""
        if "project" in self.method.hooks():
            self.before = [stack.renew().factors for stack in self.stacks]
            self.moments = [moments_of(self.optimizer, stack) for stack in self.stacks]
        args, kwargs = arguments
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self.act_on_gradients()
            return arguments
        wrapped = self._wrap(closure)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    @torch.no_grad()
    def act_on_gradients(self) -> None:
        """Run the chain's `grads` on the pairs that have gradients, and write the result back."""
        self.active = find_active(self.stacks, self.groups)
        if not self.active.stacks:
            return
        if self.method.freezes_head(self.base.step):
            self._freeze_head()
        kept = self.active.take_kept(self.kept)
        late = any(k is not None and self.ungated[i] for k, (i, _) in zip(kept, self.active.rows, strict=True))
        hooks = self.method.hooks()
        if not late and "grads" not in hooks:
            if "adds" in hooks:
                self._add()
            return
        grads: Sequence[Factors] = self.active.gradients()
        if late:
            grads = [mask_factors(g, k) for g, k in zip(grads, kept, strict=True)]
        with torch.autocast(self.active.stacks[0].keys.device.type, enabled=False):
            part = self.active.take_state(self.state)
            grads, part = self.method.grads(part, self.active.stacks, grads, self._context())
        self.state = self.active.put_state(self.state, part)
        self.active.write_gradients(grads)

    def _add(self) -> None:
        assert self.active is not None
        ctx = self._context()
        with torch.autocast(self.active.stacks[0].keys.device.type, enabled=False):
            added = self.method.adds(self.active.take_state(self.state), self.active.stacks, ctx)
        self.active.add_to_gradients(added, ctx)

    @torch.no_grad()
    def finish(self) -> bool:
        """Run the chain's `project` on what the optimizer did; return whether any pair took part in the step."""
        if self.active is None or not self.active.stacks:
            return False
        if "project" not in self.method.hooks():
            return True
        before = self.active.take_factors(self.before)
        stacks = [stack.renew() for stack in self.active.stacks]
        # A link that owns the update starts from where the optimizer started.
        after = before if self.method.owns_update else [stack.factors for stack in stacks]
        moments_after = [moments_of(self.optimizer, stack) for stack in stacks]
        moments_before = [
            {name: _rows_or_zeros(self.moments[i], name, rows, now) for name, now in latest.items()}
            for (i, rows), latest in zip(self.active.rows, moments_after, strict=True)
        ]
        part = was = self.active.take_state(self.state)
        both, ctx = (tuple(moments_before), tuple(moments_after)), self._context()
        moved, moments, part = self.method.project(part, self.active.stacks, before, after, both, ctx)
        self.state = self.active.put_state(self.state, part)
        self.active.write_factors(moved)
        for stack, old, now in zip(stacks, moments_after, moments, strict=True):
            write_moments(self.optimizer, stack, {name: now[name] for name in now if now[name] is not old.get(name)})
        for stack, anew in zip(stacks, self.method.restarts(was, part, stacks, ctx), strict=True):
            if anew is not None:
                restart(self.optimizer, itertools.compress(stack.pairs, anew.tolist()))
        return True

    def _context(self) -> Context:
        assert self.active is not None
        # Only `project` may ask for it, and it walks the optimizer's whole state.
        stacks = self.active.stacks if "project" in self.method.hooks() else ()
        shared = [name for stack in stacks for name in shared_moments(self.optimizer, stack)]
        base = replace(self.base, shared_moments=tuple(shared))
        return self.active.context(base, self.groups, self.kept, self.rows)

    def _wrap(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Act on gradients once after each backward inside the closure."""

        def wrapped() -> Any:
            before = self._fingerprint()
            with torch.enable_grad():
                loss = closure()
            # A closure that only evaluates the loss must not have the penalty added twice.
            if self._fingerprint() != before or self.active is None:
                self.act_on_gradients()
                self.seen = self._grads()
            return loss

        return wrapped

    def _grads(self) -> list[Tensor | None]:
        return [p.grad for stack in self.stacks for pair in stack.pairs for p in pair.parameters]

    def _fingerprint(self) -> list[tuple[int, int]]:
        # Gradients seen last are kept alive in `seen`, so that an id cannot be reused.
        return [(id(g), g._version) for g in self._grads() if g is not None]

    def _freeze_head(self) -> None:
        ours = {id(p) for stack in self.stacks for pair in stack.pairs for p in pair.parameters}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in ours and parameter.grad is not None:
                    parameter.grad.zero_()


def _rows_or_zeros(moments: dict[str, Factors], name: str, rows: tuple[int, ...], like: Factors) -> Factors:
    if name not in moments:
        return Factors(torch.zeros_like(like.A), torch.zeros_like(like.B))
    old = moments[name]
    return old if len(rows) == len(old.A) else Factors(old.A[list(rows)], old.B[list(rows)])
