"""A mask on the gradients of an adapter's axes, tied to whatever optimizer trains them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rmlora.axes.find_axes import Axis, Member, refuse_shards
from rmlora.errors import AttachError, StateError
from rmlora.optimizers import (
    found_inf,
    is_phantom_step,
    live_optimizers,
    read_counters,
    refuse_foreign_parameters,
    write_counters,
)
from rmlora.pairs import Stack
from rmlora.step_hooks import Arguments, ignore_steps, watch_steps
from rmlora.transform import Context
from rmlora.transforms import MaskDirections


class AxisBinding:
    """Masks on axes: hooks on the parameters' gradients, drawn anew when the optimizer has stepped.

    The parameters hold it through their hooks, so it lives as long as they do. It never holds the optimizer strongly.

    Attributes:
        link: how many directions, how often, under which policy.
        axes: what is masked.
        seed: of every draw.
        step: optimizer steps completed.
        masks: this step's directions, boolean `(r,)` by axis; None where all learn.
    """

    def __init__(self, link: MaskDirections, axes: tuple[Axis, ...], seed: int) -> None:
        refuse_foreign_parameters(axes)
        self.link, self.axes, self.seed = link, axes, seed
        self.key = f"{axes[0].adapter}#axes"
        self.step = 0
        self.located = False
        self.masks: dict[Axis, Tensor | None] = {}
        self._stacks: list[Stack] = []
        self._hooks: list[Any] = []
        self._hooked: list[nn.Parameter] = []
        self._optimizer: Callable[[], Optimizer | None] = _nobody
        self._optimizer_hooks: list[Any] = []
        self._in_step: Optimizer | None = None
        self._counts = False
        self._before: list[tuple[Member, Tensor, Tensor]] = []
        self.link.init(_stack(axes))
        self.prepare()
        watch_steps(self)

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer that trains the axes, once known and while alive."""
        return self._optimizer()

    @torch.no_grad()
    def prepare(self) -> None:
        """Draw the masks of the coming step, and put hooks on parameters that were replaced."""
        if not self._hooked or self._replaced():
            self._hook()
        context = Context(self.step, self.seed, len(self.axes))
        drawn = self.link.learning(tuple({} for _ in self._stacks), self._stacks, context)
        for stack, kept in zip(self._stacks, drawn, strict=True):
            for row, axis in enumerate(stack.pairs):
                self.masks[axis] = None if kept is None else kept.A[row]  # type: ignore[index]

    def release(self) -> None:
        """Take every hook off again."""
        ignore_steps(self)
        for hook in (*self._hooks, *self._optimizer_hooks):
            hook.remove()
        self._hooks, self._optimizer_hooks, self._optimizer = [], [], _nobody

    def mask_gradient(self, axis: Axis, member: Member, grad: Tensor) -> Tensor:
        """Return a gradient with zeros where a direction is not kept."""
        if not self.located:
            self.locate()
        kept = self.masks[axis]
        return grad if kept is None else _masked(member, kept.to(grad.device), grad, torch.zeros_like(grad))

    def locate(self) -> None:
        """Find the optimizer that holds the axes, so that a resumed run masks as it would have."""
        self.located = True
        found = live_optimizers(p for axis in self.axes for p in axis.parameters)
        counters = {read_counters(optimizer.param_groups, self.key) for optimizer in found}
        if self.optimizer is None and len(counters) > 1:
            raise StateError(
                f"{len(found)} live optimizers hold these axes and disagree on the step "
                f"({sorted(map(str, counters))}); say which one trains them: mask_axes(model, ..., optimizer=...)"
            )
        if self.optimizer is None and len(found) == 1:
            self.bind(found[0])

    def bind(self, optimizer: Optimizer) -> None:
        """Take this optimizer for the one that trains the axes, and take over the step it carries."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        groups = self._held(optimizer)
        if not groups:
            raise AttachError(
                "the optimizer given holds none of the adapter's tensors; build it from model.parameters()"
            )
        for hook in self._optimizer_hooks:
            hook.remove()
        self._optimizer = weakref.ref(optimizer)
        me = weakref.ref(self)
        self._optimizer_hooks = [optimizer.register_load_state_dict_post_hook(lambda o: _load(me, o))]
        self.located = True
        self.take_over(optimizer)

    def take_over(self, optimizer: Optimizer) -> None:
        """Go on from the step that an optimizer carries."""
        groups = self._held(optimizer)
        step, seed = read_counters(groups, self.key) or (self.step, self.seed)
        if seed != self.seed:
            raise StateError(
                f"the optimizer's checkpoint was written with seed={seed}, these masks use seed={self.seed}; call "
                f"mask_axes with seed={seed}, or every mask from here on would differ"
            )
        self.step = step
        write_counters(groups, self.key, self.step, self.seed)
        self.prepare()

    def before_step(self, optimizer: Optimizer, arguments: Arguments) -> Arguments:
        """Begin a step if this optimizer holds axes; wrapped and nested optimizers begin it once."""
        outer = self._in_step
        if outer is not None and any(value is optimizer for value in vars(outer).values()):
            return arguments
        groups = self._held(optimizer)
        self._in_step = optimizer if groups else None
        self._counts = bool(groups) and not (is_phantom_step(optimizer, groups, self.axes) or found_inf(optimizer))
        if self._counts:
            late = self._replaced()
            self._agree(optimizer, groups)
            self._mask_late(late)
            if self.link.policy == "update":
                self._before = [
                    (member, kept, member.parameter.detach().clone())
                    for axis, kept in self.masks.items()
                    if kept is not None
                    for member in axis.members
                ]
        return arguments

    def after_step(self, optimizer: Optimizer) -> None:
        """Put masked directions back under policy "update", count the step, and draw the next masks."""
        if self._in_step is not optimizer:
            return
        self._in_step = None
        took_part = any(p.grad is not None for axis in self.axes for p in axis.parameters)
        if not self._counts or not took_part:
            return
        for member, kept, before in self._before:
            now = member.parameter.detach()
            now.copy_(_masked(member, kept.to(now.device), now, before))
        self._before = []
        self.step += 1
        write_counters(self._held(optimizer), self.key, self.step, self.seed)
        self.prepare()

    def _members(self) -> list[tuple[Axis, Member]]:
        return [(axis, member) for axis in self.axes for member in axis.members]

    def _replaced(self) -> list[tuple[Axis, Member]]:
        """Members whose parameter is another than the one with our hook, as after loading with `assign=True`."""
        both = zip(self._members(), self._hooked, strict=True)
        return [member for member, hooked in both if member[1].parameter is not hooked]

    def _mask_late(self, members: list[tuple[Axis, Member]]) -> None:
        """Mask gradients that came about without our hook."""
        for axis, member in members:
            refuse_shards(axis, member)
            grad = member.parameter.grad
            if grad is not None:
                grad.copy_(self.mask_gradient(axis, member, grad))
        if members:
            self.prepare()

    def _hook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._stacks = _stack(self.axes)
        self._hooked = [member.parameter for _, member in self._members()]
        self._hooks = [
            member.parameter.register_hook(AxisHook(self, axis, member))  # type: ignore[no-untyped-call]
            for axis, member in self._members()
        ]

    def _agree(self, optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
        """Make sure that the masks of this step were those the optimizer's checkpoint asks for."""
        if self.optimizer is optimizer:
            return
        counters = read_counters(groups, self.key)
        if counters is not None and counters != (self.step, self.seed):
            raise StateError(
                f"the optimizer resumes at step {counters[0]} (seed {counters[1]}), but the masks of this step were "
                f"drawn for step {self.step} (seed {self.seed}); call bind(optimizer) before the backward pass"
            )
        self.bind(optimizer)

    def _held(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        ours = {id(p) for axis in self.axes for p in axis.parameters}
        return [group for group in optimizer.param_groups if any(id(p) in ours for p in group["params"])]


class AxisHook:
    """What is called with the gradient of one tensor."""

    def __init__(self, binding: AxisBinding, axis: Axis, member: Member) -> None:
        self.binding, self.axis, self.member = binding, axis, member

    def __call__(self, grad: Tensor) -> Tensor:
        """Mask it."""
        return self.binding.mask_gradient(self.axis, self.member, grad)


def _stack(axes: Sequence[Axis]) -> list[Stack]:
    """Group axes of equal size and device, to draw their masks at once."""
    groups: dict[Hashable, list[Axis]] = {}
    for axis in axes:
        groups.setdefault((axis.r, axis.parameters[0].device), []).append(axis)
    return [
        Stack(tuple(group), torch.tensor([axis.words for axis in group], device=group[0].parameters[0].device))
        for group in groups.values()
    ]


def is_masked(axis: Axis) -> bool:
    """Whether the gradients of an axis are masked already."""
    hooks = [hook for parameter in axis.parameters for hook in (parameter._backward_hooks or {}).values()]
    return any(isinstance(hook, AxisHook) for hook in hooks)


def _masked(member: Member, kept: Tensor, value: Tensor, otherwise: Tensor) -> Tensor:
    for mask in member.spread(kept):
        value = torch.where(mask, value, otherwise)
    return value


def _load(me: Callable[[], AxisBinding | None], optimizer: Optimizer) -> None:
    binding = me()
    if binding is not None:
        binding.take_over(optimizer)


def _nobody() -> None:
    return None
