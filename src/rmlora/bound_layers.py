"""Which methods act on a PEFT layer: kept on the layer, so that they live, copy and die with the model."""

from __future__ import annotations

from torch import nn

from rmlora.binding import Binding
from rmlora.pairs import Pair, adapters_of

_BINDINGS = "rmlora_bindings"
"""Attribute of a PEFT layer: its bindings by adapter name."""


def remember(pair: Pair, binding: Binding) -> None:
    """Let the pair's layer hold the binding, so that it lives as long as the model."""
    pair.layer.__dict__.setdefault(_BINDINGS, {})[pair.adapter] = binding


def bindings_of(layer: nn.Module) -> dict[str, Binding]:
    """Return a layer's bindings by adapter name; those whose adapter was deleted are forgotten here."""
    bindings: dict[str, Binding] = getattr(layer, _BINDINGS, {})
    for adapter in [name for name in bindings if name not in _adapters_of(layer)]:
        bindings.pop(adapter).release()
    return bindings


def _adapters_of(layer: nn.Module) -> set[str]:
    return adapters_of(layer) | set(getattr(layer, "vera_lambda_d", ()))


def forget(pair: Pair) -> None:
    """Let the pair's layer hold no binding of the pair's adapter any more."""
    getattr(pair.layer, _BINDINGS, {}).pop(pair.adapter, None)
