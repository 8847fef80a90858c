"""Letting a model see some of its classes only: the loss of a task's own classes, the answer among all seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.errors import ConfigError


@contextmanager
def visible_classes(model: nn.Module, num_classes: int, learn: Sequence[int], answer: Sequence[int]) -> Iterator[None]:
    """Set the outputs of all other classes to minus infinity, by a hook on the layer that gives them.

    The cross-entropy a model computes is then that over the visible classes alone, exactly: the others have
    probability 0 and gradient 0.

    Args:
        model: its last linear layer with `num_classes` outputs gives the logits. Unchanged afterwards.
        num_classes: outputs of that layer.
        learn: class ids visible in training mode.
        answer: class ids visible in evaluation mode.

    Raises:
        ConfigError: no such layer.

    Example:
        >>> layer = nn.Linear(2, 3).eval()
        >>> with visible_classes(layer, 3, [0], [0, 2]):
        ...     layer(torch.zeros(1, 2)).isinf().tolist()
        [[False, True, False]]
    """
    layer = _output_layer(model, num_classes)
    hidden = {True: _others(num_classes, learn), False: _others(num_classes, answer)}

    def hide(module: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        return logits.masked_fill(hidden[module.training].to(logits.device), float("-inf"))

    hook = layer.register_forward_hook(hide)
    try:
        yield
    finally:
        hook.remove()


def _others(num_classes: int, visible: Sequence[int]) -> Tensor:
    others = torch.ones(num_classes, dtype=torch.bool)
    others[list(visible)] = False
    return others


def _output_layer(model: nn.Module, num_classes: int) -> nn.Linear:
    """The last trained linear layer with that many outputs; what PEFT keeps beside a trained head is not trained."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == num_classes]
    trained = [layer for layer in layers if layer.weight.requires_grad]
    if not trained:
        raise ConfigError(f"{type(model).__name__} has no trained linear layer with {num_classes} outputs at its end")
    return trained[-1]
