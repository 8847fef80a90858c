"""What was seen of each training step, and the callback that sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from rmlora.pairs import Kept, Pair

NUM_STEPS = 3
"""Training steps the doctor takes."""

Two = tuple[Tensor, Tensor]


@dataclass
class Step:
    """One optimizer step. Of every pair, by its name, the two parameters (A and B; of VeRA its vectors d and b), in
    main memory.

    Attributes:
        number: optimizer steps before it.
        kept: which directions learn; only pairs that mask some.
        before: copies before the optimizer moved them.
        after: copies after it, and after all the method did.
        task: gradients after any clipping, before the method and the optimizer act; None where absent.
        final: gradients it went by.
        lr: highest learning rate of the groups.
        others: norm of the final gradient of every other trainable parameter, by its full name; None where absent.
        moments: the optimizer's moments of the pairs, before and after; only where directions are masked.
        taken: False where a gradient scaler left the step out.
    """

    number: int
    kept: Mapping[str, Kept]
    before: dict[str, Two]
    after: dict[str, Two] = field(default_factory=dict)
    task: dict[str, Two | None] = field(default_factory=dict)
    final: dict[str, Two | None] = field(default_factory=dict)
    lr: float = 0.0
    others: dict[str, float | None] = field(default_factory=dict)
    moments: list[dict[str, dict[str, Two]]] = field(default_factory=list)
    taken: bool = False


class WatchSteps(TrainerCallback):  # type: ignore[misc]
    """See the first steps of a run, then stop it; nothing is evaluated or saved meanwhile.

    Args:
        model: in training; only read.
        handle: what `attach` returned; None without an adapter.
        count: steps to see.

    Attributes:
        steps: one per optimizer step.
        seconds: of each, without what watching takes.
        optimizer: that of the trainer, unwrapped.
    """

    def __init__(self, model: Any, handle: Any, count: int = NUM_STEPS) -> None:
        self.model, self.handle, self.count = model, handle, count
        self.pairs: tuple[Pair, ...] = handle.pairs if handle is not None else ()
        self.steps: list[Step] = []
        self.seconds: list[float] = []
        self.optimizer: Any = None
        self._hook: Any = None
        self._begun = 0.0
        self._watched = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look over the optimizer's shoulder."""
        optimizer = kwargs["optimizer"]
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        self._hook = self.optimizer.register_step_post_hook(lambda *_: self._after_step())
        self._begun = _now()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember factors and masks."""
        begun = _now()
        masks = () if self.handle is None else self.handle.masks()
        kept = {pair.name: Kept(mask.A.cpu(), mask.B.cpu()) for pair, mask in masks}
        step = Step(state.global_step, kept, {pair.name: _copies(pair) for pair in self.pairs})
        step.task = {pair.name: _gradients(pair) for pair in self.pairs}
        step.lr = max(float(group["lr"]) for group in self.optimizer.param_groups)
        self.steps.append(step)
        if kept:
            self.steps[-1].moments.append(self._moments())
        self._watched += _now() - begun

    def _after_step(self) -> None:
        begun, step = _now(), self.steps[-1]
        step.taken = True
        step.final = {pair.name: _gradients(pair) for pair in self.pairs}
        ours = {id(parameter) for pair in self.pairs for parameter in pair.parameters}
        step.others = {
            name: None if parameter.grad is None else float(parameter.grad.norm())
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and id(parameter) not in ours
        }
        self._watched += _now() - begun

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember what came of it."""
        begun, step = _now(), self.steps[-1]
        step.after = {pair.name: _copies(pair) for pair in self.pairs}
        if step.moments:
            step.moments.append(self._moments())
        self._watched += _now() - begun

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time; stop after the last."""
        now = _now()
        self.seconds.append(now - self._begun - self._watched)
        self._begun, self._watched = now, 0.0
        control.should_save = control.should_evaluate = False
        control.should_training_stop |= state.global_step >= self.count

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take back what the Trainer has decided."""
        control.should_save = control.should_evaluate = False

    def close(self) -> None:
        """Look away."""
        if self._hook is not None:
            self._hook.remove()

    def _moments(self) -> dict[str, dict[str, Two]]:
        return {pair.name: _moments_of(self.optimizer, pair) for pair in self.pairs}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _copy(value: Tensor) -> Tensor:
    """Copy to main memory, so that a GPU's peak is the run's own."""
    return value.detach().to("cpu", copy=True)


def _copies(pair: Pair) -> Two:
    A, B = (_copy(parameter) for parameter in pair.parameters)
    return A, B


def _gradients(pair: Pair) -> Two | None:
    A, B = (parameter.grad for parameter in pair.parameters)
    if A is None and B is None:
        return None
    first, second = pair.parameters
    return _copy(torch.zeros_like(first) if A is None else A), _copy(torch.zeros_like(second) if B is None else B)


def _moments_of(optimizer: Any, pair: Pair) -> dict[str, Two]:
    A, B = (
        {k: _copy(v) for k, v in optimizer.state.get(p, {}).items() if isinstance(v, Tensor) and v.shape == p.shape}
        for p in pair.parameters
    )
    return {name: (A[name], B[name]) for name in A.keys() & B.keys()}
