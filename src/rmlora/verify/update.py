"""The formula itself: W0 + s B A written into a model's own weights, without PEFT."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rmlora.analysis.stored import StoredPair
from rmlora.errors import AdapterError


def write_updates(model: nn.Module, pairs: Iterable[StoredPair]) -> None:
    """Add s B A to the weight of every adapted module.

    Args:
        model: a bare base model; its weights are changed.
        pairs: of the adapter.

    Raises:
        AdapterError: a module is not there, has another shape, or is none of linear, `Conv1D`, embedding and ungrouped
            convolution.
    """
    with torch.no_grad():
        for pair in pairs:
            weight = weight_of(model, pair.name)
            weight += update_of(model, pair).to(weight.dtype)


def weight_of(model: nn.Module, name: str) -> Tensor:
    """Return the weight of a module, live.

    Raises:
        AdapterError: there is no such module.
    """
    try:
        return model.get_submodule(name).get_parameter("weight")
    except AttributeError:
        raise AdapterError(
            f'the base model has no module "{name}"; is it another model, or another class of it?'
        ) from None


def update_of(model: nn.Module, pair: StoredPair) -> Tensor:
    """Return dW = s B A of a pair in the shape of its module's weight, in float64.

    Raises:
        AdapterError: as `write_updates`.
    """
    module, weight = model.get_submodule(pair.name), weight_of(model, pair.name)
    update = pair.scale * (pair.B.double() @ pair.A.double())
    if type(module).__name__ == "Conv1D" or isinstance(module, nn.Embedding):
        update = update.T
    if getattr(module, "groups", 1) != 1 or update.numel() != weight.numel() or len(update) != len(weight):
        raise AdapterError(
            f"{pair.name} has a weight {tuple(weight.shape)}, B A is {tuple(update.shape)}: another base model, or a "
            "kind of module that this command cannot recompute"
        )
    return update.reshape(weight.shape)
