"""The gated form of PEFT's AdaLoRA layer: its forward pass with hooks in front of, between and behind its factors.

AdaLoRA's layers hold bare parameters and call no modules for them, so their class is swapped as a whole, and only for
methods that act in the forward pass. Without hooks the numbers are PEFT's, operation for operation.
"""

from __future__ import annotations

from typing import Any, cast

from peft.tuners.adalora.layer import SVDLinear
from torch import Tensor

from rmlora.gates import Gate, Owner
from rmlora.pairs import Pair

_GATES = "rmlora_triplet_gates"
"""Attribute of a layer: its gates (A, B) by adapter name."""


class GatedSVDLinear(SVDLinear):  # type: ignore[misc]
    """PEFT's `SVDLinear` with gates: `y = W0 x + s outputs(B ranks(E A inputs(x)))`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the parent's output, with the forward hooks of every adapter that has some."""
        if self.disable_adapters or self.merged:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        result = cast(Tensor, self.base_layer(x, *args, **kwargs))
        for adapter in self.active_adapters:
            if adapter in self.lora_A:
                result += self._update(adapter, x)
        return result

    def _update(self, adapter: str, x: Tensor) -> Tensor:
        A, B, E = self.lora_A[adapter], self.lora_B[adapter], self.lora_E[adapter]
        first, second = self.__dict__[_GATES].get(adapter, (None, None))
        x = self.lora_dropout[adapter](self._cast_input_dtype(x, A.dtype))
        x = x if first is None else first.enter(self, x)
        x = x @ (A * E).T
        x = x if first is None else first.leave(self, x)
        x = x @ B.T
        x = x if second is None else second.leave(self, x)
        return cast(Tensor, x * self.scaling[adapter] / (self.ranknum[adapter] + 1e-5))


def can_gate_triplets(pair: Pair) -> bool:
    """Whether the pair belongs to an AdaLoRA layer that has a gated form."""
    return type(pair.layer) in (SVDLinear, GatedSVDLinear)


def open_triplet_gates(pair: Pair, adapter: Owner) -> None:
    """Swap the class of a pair's layer."""
    pair.layer.__class__ = GatedSVDLinear
    gates = Gate(adapter, pair, "A"), Gate(adapter, pair, "B")
    pair.layer.__dict__.setdefault(_GATES, {})[pair.adapter] = gates


def close_triplet_gates(pair: Pair) -> None:
    """Give a layer its own class back once no adapter of it has gates."""
    gates = pair.layer.__dict__.get(_GATES, {})
    gates.pop(pair.adapter, None)
    if not gates and type(pair.layer) is GatedSVDLinear:
        pair.layer.__class__ = SVDLinear
        pair.layer.__dict__.pop(_GATES, None)
