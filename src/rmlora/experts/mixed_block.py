"""A block that runs once as the base has it and once with every expert, and adds what a gate lets through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.errors import AttachError
from rmlora.experts.adding import adapter_name
from rmlora.experts.gate import Gate


@dataclass(eq=False)
class Moment:
    """What the blocks of a mixture share while it runs.

    Attributes:
        keep: `(N,)` which experts take part.
        mask: `(B, L)` of the input, 1 for tokens that count; None counts all.
        gates: what the gate of each block said, `(B, N)`, in the order of the blocks.
    """

    keep: Tensor
    mask: Tensor | None = None
    gates: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Mixing:
    """What one block needs to mix.

    Attributes:
        index: of the block.
        layers: PEFT's layers inside it.
        gate: its gate.
        experts: N.
        moment: shared with the other blocks.
    """

    index: int
    layers: tuple[Any, ...]
    gate: Gate
    experts: int
    moment: Moment


class MixedForward(nn.Module):
    """Mixed into a block's class: out = F(x) + sum_i G_i E_i(x), with E_i(x) = F_i(x) - F(x).

    F is the block with the base's weights, F_i the block with expert i's update in all its layers, so that a gate that
    is 1 for one expert gives that expert's block.
    """

    _mixing: Mixing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block with what it was called with; of several outputs the first is mixed."""
        if any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values())):
            raise AttachError(
                "a mixture runs each block several times and keeps no cache; call it with use_cache=False"
            )
        own = self._mixing
        plain = super().forward(*args, **kwargs)
        base = _first(plain)
        found = []
        try:
            for layer in own.layers:
                layer.enable_adapters(True)
            for i in range(own.experts):
                for layer in own.layers:
                    layer.set_adapter([adapter_name(i)], inference_mode=True)
                found.append(_first(super().forward(*args, **kwargs)) - base)
        finally:
            rest(own.layers)
        outputs = torch.stack(found)
        gates = own.gate(outputs, own.moment.mask, own.moment.keep)
        own.moment.gates[own.index] = gates
        shape = (*gates.T.shape, *[1] * (outputs.dim() - 2))
        mixed = base + (gates.T.reshape(shape).to(outputs.dtype) * outputs).sum(0)
        return (mixed, *plain[1:]) if isinstance(plain, tuple) else mixed


def mix_block(block: nn.Module, mixing: Mixing) -> None:
    """Turn a block into one that mixes: its class becomes a subclass, its parameters stay.

    Args:
        block: changed in place.
        mixing: what it needs.
    """
    object.__setattr__(block, "_mixing", mixing)
    block.__class__ = _mixed(type(block))


def rest(layers: Sequence[Any]) -> None:
    """Let PEFT's layers compute what the base does, without gradients of their factors."""
    for layer in layers:
        layer.enable_adapters(False)


def adapted_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and layer of every module on which PEFT has put LoRA."""
    from peft.tuners.lora import LoraLayer

    yield from ((name, layer) for name, layer in module.named_modules() if isinstance(layer, LoraLayer))


def _mixed(cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"Mixed{cls.__name__}", (MixedForward, cls), {})


def _first(outputs: Any) -> Tensor:
    found = outputs[0] if isinstance(outputs, tuple) else outputs
    if not isinstance(found, Tensor):
        raise AttachError(f"a mixture needs blocks that return a tensor first, not {type(found).__name__}")
    return found
