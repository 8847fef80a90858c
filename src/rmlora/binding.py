"""A binding: one method on one adapter, tied to whatever optimizer trains it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from rmlora.combine import Chain
from rmlora.errors import AttachError, StateError
from rmlora.leaves import Scalers
from rmlora.live import LiveAdapter
from rmlora.one_step import OneStep
from rmlora.optimizers import (
    found_inf,
    groups_by_parameter,
    is_phantom_step,
    live_optimizers,
    read_counters,
    read_siblings,
    read_state,
    refuse_foreign_parameters,
    write_counters,
    write_siblings,
    write_state,
)
from rmlora.pairs import Pair
from rmlora.shards import at_rest, unknown_shards
from rmlora.step_hooks import Arguments, ignore_steps, watch_steps
from rmlora.transform import FORWARD_HOOKS, Context


class Binding(LiveAdapter):
    """A live adapter that acts when its optimizer steps.

    Modules hold it through their gates, so it lives as long as the model; a deep copy of the model gets a binding of
    its own, with the same step and no optimizer. It never holds the optimizer strongly.
    """

    _optimizer: Callable[[], Optimizer | None]
    _optimizer_hooks: list[Any]
    _in_step: OneStep | Optimizer | None
    _scalers: Scalers

    def __init__(
        self, method: Chain, adapter: str, seed: int, pairs: Iterable[Pair] = (), *, fast: bool = True
    ) -> None:
        self._forget_optimizer()
        super().__init__(method, adapter, seed, pairs, fast=fast)
        watch_steps(self)

    def release(self) -> None:
        """Let go of model and optimizer: classes, hooks, registry."""
        super().release()
        ignore_steps(self)
        for hook in self._optimizer_hooks:
            hook.remove()
        self._forget_optimizer()

    def locate(self) -> None:
        """Find the optimizer that holds the pairs, so that a resumed run masks as it would have."""
        with at_rest():
            self._locate()

    def _locate(self) -> None:
        self._refuse(self.pairs)
        if unknown_shards(p for pair in self.pairs for p in pair.parameters):
            raise AttachError("DTensors that fully_shard did not make (tensor parallelism) are not supported; use DDP")
        self.located = True
        self.prepare()
        if self.optimizer is not None:
            return
        found = live_optimizers(p for pair in self.pairs for p in pair.parameters)
        counters = {read_counters(optimizer.param_groups, self.adapter) for optimizer in found}
        if len(counters) > 1:
            raise StateError(
                f"{len(found)} live optimizers hold this adapter and disagree on the step "
                f"({sorted(map(str, counters))}); say which one trains it: attach(model, method, optimizer=...)"
            )
        if len(found) == 1:
            self.bind(found[0])

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer that trains the pairs, once known and while alive."""
        return self._optimizer()

    def bind(self, optimizer: Optimizer) -> None:
        """Take this optimizer for the one that trains the pairs, and take over what it carries."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        groups = self._held(optimizer)
        if not groups:
            refuse_foreign_parameters(self.pairs)
            raise AttachError(
                "the optimizer given holds none of the adapter's factors; build it from model.parameters()"
            )
        if self.optimizer is optimizer:
            return
        for hook in self._optimizer_hooks:
            hook.remove()
        self._optimizer = weakref.ref(optimizer)
        me = weakref.ref(self)
        self._optimizer_hooks = [
            optimizer.register_state_dict_pre_hook(lambda o: _call(me, Binding._store, o)),
            optimizer.register_load_state_dict_post_hook(lambda o: _call(me, Binding._load, o)),
        ]
        self.located = True
        if read_counters(groups, self.adapter) is not None:
            self._load(optimizer)
        write_counters(groups, self.adapter, self.step, self.seed)

    def _store(self, optimizer: Optimizer) -> None:
        if self.step > 0 or any(optimizer.state.get(p) for pair in self.pairs for p in pair.parameters):
            for stack, tensors in zip(self.stacks, self.state, strict=True):
                write_state(optimizer, self.adapter, stack, tensors)

    def _load(self, optimizer: Optimizer) -> None:
        groups = self._held(optimizer)
        step, seed = read_counters(groups, self.adapter) or (0, self.seed)
        if seed != self.seed:
            raise StateError(
                f"the optimizer's checkpoint was written with seed={seed}, this run uses seed={self.seed}; "
                f"attach with seed={seed}, or every mask from here on would differ"
            )
        self.step = step
        number = read_siblings(groups, self.adapter)
        if number is not None and step > 0:
            self.siblings.decode(number, self.pairs)
        self._regroup()
        self.state = tuple(
            read_state(optimizer, self.adapter, stack, tensors)
            for stack, tensors in zip(self.stacks, self.state, strict=True)
        )
        write_counters(groups, self.adapter, self.step, self.seed)
        self.prepare()

    def _held(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        ours = {id(p) for pair in self.pairs for p in pair.parameters}
        return [group for group in optimizer.param_groups if any(id(p) in ours for p in group["params"])]

    def _forget_optimizer(self) -> None:
        self._optimizer = _nobody
        self._optimizer_hooks = []
        self._in_step = None
        self._scalers = Scalers()

    def before_step(self, optimizer: Optimizer, arguments: Arguments) -> Arguments:
        """Begin a step if this optimizer holds pairs; wrapped and nested optimizers begin it once."""
        outer = self._in_step.optimizer if isinstance(self._in_step, OneStep) else self._in_step
        if outer is not None and any(value is optimizer for value in vars(outer).values()):
            return arguments
        self._in_step = None
        groups = self._held(optimizer)
        if not groups:
            if optimizer is self.optimizer:
                refuse_foreign_parameters(self.pairs)  # DeepSpeed gives the user's own optimizer other parameters
            return arguments
        self._in_step = optimizer
        if is_phantom_step(optimizer, groups, self.pairs):
            if self.optimizer is None:  # a distributed checkpoint is read into the places that a state has already
                self.bind(optimizer)
                write_siblings(groups, self.adapter, self.siblings.number)
            return arguments
        if found_inf(optimizer):
            return arguments
        self._agree(optimizer)
        self._regroup()
        self._in_step = OneStep(
            optimizer=optimizer,
            method=self.method,
            state=self.state,
            stacks=[stack.renew() for stack in self.stacks],
            ungated=[stack.pairs[0] not in self.gates for stack in self.stacks],
            kept=self.kept,
            rows=self.rows,
            base=self._context_of(optimizer),
            groups=groups_by_parameter(optimizer),
        )
        return self._in_step.begin(arguments)

    def after_step(self, optimizer: Optimizer) -> None:
        """Finish the step that this optimizer began, count it, and set the masks of the next one."""
        current = self._in_step
        if current is optimizer:
            self._in_step = None
        if not isinstance(current, OneStep) or current.optimizer is not optimizer:
            return
        self._in_step = None
        if current.finish():
            self.state = current.state
            self.step += 1
            self.microbatch = 0
            held = self._held(optimizer)
            write_counters(held, self.adapter, self.step, self.seed)
            self.siblings.drop()
            self.siblings.settle(self.pairs)
            write_siblings(held, self.adapter, self.siblings.number)
            self.prepare()

    def _context_of(self, optimizer: Optimizer) -> Context:
        """What this step's hooks may know, but for rates and masks."""
        has_leaves = any(value.requires_grad for tensors in self.state for value in tensors.values())
        leaf_scale = self._scalers.scale_of(optimizer) if has_leaves else 1.0
        return Context(self.step, self.seed, len(self.pairs), loss_scale=_loss_scale(optimizer), leaf_scale=leaf_scale)

    def _agree(self, optimizer: Optimizer) -> None:
        """Make sure that the masks of this step were those the optimizer's checkpoint asks for."""
        if self.optimizer is optimizer:
            return
        counters = read_counters(self._held(optimizer), self.adapter)
        if (
            counters is not None
            and counters != (self.step, self.seed)
            and (self.gates or self.triplets)  # elsewhere masks act at the step only, and are drawn anew for it
            and self.method.hooks() & (FORWARD_HOOKS | {"keep"})
        ):
            raise StateError(
                f"the optimizer resumes at step {counters[0]} (seed {counters[1]}), but the masks of this step were "
                f"drawn for step {self.step} (seed {self.seed}); call handle.bind(optimizer) before the forward pass"
            )
        self.bind(optimizer)

    def __getstate__(self) -> dict[str, Any]:
        kept_out = ("_optimizer", "_optimizer_hooks", "_in_step", "_scalers")
        return {key: value for key, value in self.__dict__.items() if key not in kept_out} | {"located": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_optimizer()
        watch_steps(self)


def _nobody() -> None:
    return None


def _call(me: Callable[[], Binding | None], function: Callable[[Binding, Optimizer], None], o: Optimizer) -> None:
    binding = me()
    if binding is not None:
        function(binding, o)


def _loss_scale(optimizer: Optimizer) -> float | Tensor:
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale
