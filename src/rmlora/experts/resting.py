"""Frozen parts run as in evaluation, so that training sees the features that inference will see."""

from __future__ import annotations

from typing import Any

from torch import nn


def rest_frozen(model: nn.Module) -> Any:
    """Switch off dropout wherever nothing is trained, at the start of every forward pass.

    Args:
        model: the topmost modules with parameters of which none is trainable are put into evaluation mode; the rest,
            such as the dropout in front of a classifier, is left to `model.train()`.

    Returns:
        The handle of the hook, whose `remove` undoes it.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> handle = rest_frozen(model)
        >>> _ = model.train()(torch.zeros(1, 2))
        >>> model[0].training, model[1].training
        (False, True)
    """
    frozen = _topmost_frozen(model)

    def rest(module: nn.Module, args: Any) -> None:
        for part in frozen:
            part.eval()

    return model.register_forward_pre_hook(rest)


def _topmost_frozen(module: nn.Module) -> list[nn.Module]:
    own = list(module.parameters())
    if not own:
        return []
    if not any(p.requires_grad for p in own):
        return [module]
    return [part for child in module.children() for part in _topmost_frozen(child)]
