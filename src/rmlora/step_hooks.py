"""The two hooks on every optimizer's step, and the weak registry of bindings they serve: the one global of rmlora.

PyTorch's global step hooks fire for whatever optimizer steps, wrapped or not, so nothing has to be told which optimizer
trains the adapter.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Stepper(Protocol):
    """What reacts to optimizer steps."""

    def before_step(self, optimizer: Optimizer, arguments: Arguments) -> Arguments:
        """Act before the step; may return changed arguments (a wrapped closure)."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Act after the step."""


_steppers: weakref.WeakSet[Stepper] = weakref.WeakSet()
_registered: list[Any] = []


def watch_steps(stepper: Stepper) -> None:
    """Call `stepper` around every optimizer step from now on, for as long as it lives."""
    _steppers.add(stepper)
    if not _registered:
        _registered.append(register_optimizer_step_pre_hook(_before))
        _registered.append(register_optimizer_step_post_hook(_after))


def ignore_steps(stepper: Stepper) -> None:
    """Stop calling `stepper`."""
    _steppers.discard(stepper)


@torch.no_grad()
def _before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    arguments = (args, kwargs)
    for stepper in tuple(_steppers):
        arguments = stepper.before_step(optimizer, arguments)
    return arguments


@torch.no_grad()
def _after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for stepper in tuple(_steppers):
        stepper.after_step(optimizer)
