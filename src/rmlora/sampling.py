"""Letting methods draw for inference, and putting everything back afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def sampling(adapters: Sequence[LiveAdapter], seed: int, start: int, count: int) -> Iterator[None]:
    """Let the methods draw although the model is in evaluation mode, for some instances."""
    before = [(one.seed, one.instance, one.instances, one.sampling) for one in adapters]
    try:
        for one in adapters:
            one.seed, one.instance, one.instances, one.sampling = seed, start, count, True
        yield
    finally:
        for one, values in zip(adapters, before, strict=True):
            one.seed, one.instance, one.instances, one.sampling = values
