"""Letting methods draw for inference, and putting everything back afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from rmlora.live import LiveAdapter


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module back as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class Draws:
    """What draws for inference depend on, beside the instance.

    Attributes:
        seed: of the masks.
        step: optimizer step they stand for; None is the adapter's own.
    """

    seed: int = 0
    step: int | None = None


@contextmanager
def sampling(adapters: Sequence[LiveAdapter], draws: Draws, start: int, count: int) -> Iterator[None]:
    """Let the methods draw although the model is in evaluation mode, for instances `start` to `start + count`."""
    before = [(one.seed, one.step, one.microbatch, one.instance, one.instances, one.sampling) for one in adapters]
    try:
        for one in adapters:
            one.seed, one.step = draws.seed, one.step if draws.step is None else draws.step
            one.microbatch, one.instance, one.instances, one.sampling = 0, start, count, True
        yield
    finally:
        for one, values in zip(adapters, before, strict=True):
            one.seed, one.step, one.microbatch, one.instance, one.instances, one.sampling = values
