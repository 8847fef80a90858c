"""Gates: the modules that hold A and B, taught to differentiate kept directions only and to call forward hooks.

Attaching swaps the class of PEFT's `lora_A[adapter]` and `lora_B[adapter]` for a subclass with the same parameters, so
that merging, saving, several adapters and sharding see nothing new. With nothing masked and no forward hook the forward
pass is the parent's, operation for operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from rmlora.errors import AttachError
from rmlora.pairs import Factors, Pair
from rmlora.siblings import Siblings
from rmlora.transform import ForwardContext, Transform

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""What a module does with its input, a weight and a bias."""


class Owner(Protocol):
    """What a gate asks of the adapter it belongs to."""

    located: bool
    forward_hooks: frozenset[str]
    instances: int
    sampling: bool
    siblings: Siblings
    fast: dict[Pair, Any]

    @property
    def method(self) -> Transform:
        """The chain whose forward hooks act."""

    def locate(self) -> None:
        """Find the optimizer, and with it the step, before the first backward."""

    def prepare(self) -> None:
        """Draw the masks where the factors are now."""

    def forward_state(self, pair: Pair, module: nn.Module) -> tuple[dict[str, Tensor], ForwardContext]:
        """The pair's slices of the state, and what its forward hooks may know."""


class Gate:
    """What one factor module has to know: its side, its mask, and whom to ask.

    Attributes:
        kept: boolean `(r,)` view into the stack's mask, rewritten in place at every step; None when all learn.
        rows: int64 `(k,)` view, the indices of the kept directions, likewise; None when all learn, or when modules of
            the stack keep different numbers.
    """

    def __init__(self, adapter: Owner, pair: Pair, side: Literal["A", "B"]) -> None:
        self.adapter = adapter
        self.pair = pair
        self.side = side
        self.kept: Tensor | None = None
        self.rows: Tensor | None = None

    def enter(self, module: nn.Module, x: Tensor) -> Tensor:
        """Apply `inputs` in front of A."""
        adapter = self.adapter
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            refuse_replica(module, self.pair)
            if not adapter.located:
                adapter.locate()
        if self.side == "A" and "inputs" in adapter.forward_hooks:
            state, ctx = adapter.forward_state(self.pair, module)
            x = adapter.method.inputs(state, x, ctx)
        return x

    def weigh(self, weight: Tensor) -> Tensor:
        """Return the weight such that only kept directions receive its gradient; its value is unchanged."""
        if self.kept is None or not torch.is_grad_enabled() or not weight.requires_grad:
            return weight
        if self.kept.device != weight.device:
            self.adapter.prepare()
        shape = [1] * weight.dim()
        shape[0 if self.side == "A" else 1] = -1
        return torch.where(self.kept.view(shape), weight, weight.detach())

    def leave(self, module: nn.Module, x: Tensor) -> Tensor:
        """Apply `ranks` behind A, or `outputs` behind B."""
        hook = "ranks" if self.side == "A" else "outputs"
        if hook not in self.adapter.forward_hooks:
            return x
        state, ctx = self.adapter.forward_state(self.pair, module)
        if hook == "ranks":
            return self.adapter.method.ranks(state, x, ctx)
        return self.adapter.method.outputs(state, x, ctx)

    def block(self, module: nn.Module) -> Tensor | None:
        """Return this side of the blocks beside the pair, in the shape of a weight; None without any."""
        if "blocks" not in self.adapter.forward_hooks:
            return None
        state, ctx = self.adapter.forward_state(self.pair, module)
        live = Factors(self.pair.A.detach(), self.pair.B.detach())
        found = self.adapter.method.blocks(state, live, ctx)
        if found is None:
            return None
        weight: Tensor = module.weight  # type: ignore[assignment]
        if self.side == "A":
            return found.A.to(weight).view(-1, *weight.shape[1:])
        return found.B.to(weight).view(len(weight), -1, *weight.shape[2:])

    def compute(self, module: nn.Module, x: Tensor, product: Product) -> Tensor:
        """Compute the module's output, with what hooks change; A's carries the features of blocks behind its own."""
        entered = self.enter(module, x)
        weight, bias = cast(Tensor, module.weight), cast("Tensor | None", module.bias)
        block = self.block(module)
        if block is None:
            return self.leave(module, product(entered, self.weigh(weight), bias))
        dim = -1 - len(weight.shape[2:])
        if self.side == "A":
            own = self.leave(module, product(entered, self.weigh(weight), bias))
            return torch.cat([own, product(x, block, None)], dim)
        own, behind = torch.split(entered, [weight.shape[1], block.shape[1]], dim)
        return self.leave(module, product(own, self.weigh(weight), bias)) + product(behind, block, None)


class GatedLinear(nn.Linear):
    """`nn.Linear` with a gate."""

    gate: Gate

    def forward(self, input: Tensor) -> Tensor:
        """Compute the parent's output."""
        return self.gate.compute(self, input, F.linear)


class GatedConv1d(nn.Conv1d):
    """`nn.Conv1d` with a gate."""

    gate: Gate

    def forward(self, input: Tensor) -> Tensor:
        """Compute the parent's output."""
        return self.gate.compute(self, input, self._conv_forward)


class GatedConv2d(nn.Conv2d):
    """`nn.Conv2d` with a gate."""

    gate: Gate

    def forward(self, input: Tensor) -> Tensor:
        """Compute the parent's output."""
        return self.gate.compute(self, input, self._conv_forward)


class GatedConv3d(nn.Conv3d):
    """`nn.Conv3d` with a gate."""

    gate: Gate

    def forward(self, input: Tensor) -> Tensor:
        """Compute the parent's output."""
        return self.gate.compute(self, input, self._conv_forward)


_GATED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: GatedLinear,
    nn.Conv1d: GatedConv1d,
    nn.Conv2d: GatedConv2d,
    nn.Conv3d: GatedConv3d,
}
_PLAIN = {gated: plain for plain, gated in _GATED.items()}


def refuse_replica(module: nn.Module, pair: Pair) -> None:
    """Raise where a module is one of the copies that `nn.DataParallel` makes for a single pass.

    Raises:
        AttachError: it is.
    """
    if "_is_replica" in module.__dict__:
        raise AttachError(
            f"{pair.name}: nn.DataParallel trains copies of the modules, which no method reaches; start one process "
            "per GPU with torchrun instead (DDP)"
        )


def can_gate(pair: Pair) -> bool:
    """Whether the pair's A and B are called as modules of a class that has a gated form."""
    known = _GATED.keys() | _PLAIN.keys()
    return pair.calls_modules and all(type(module) in known for module in pair.factor_modules)


def open_gates(pair: Pair, adapter: Owner) -> tuple[Gate, Gate]:
    """Swap the classes of a pair's factor modules for gated ones and return the gates (A, B)."""
    gates = Gate(adapter, pair, "A"), Gate(adapter, pair, "B")
    for module, gate in zip(pair.factor_modules, gates, strict=True):
        module.__class__ = _GATED[type(module)]
        module.gate = gate  # type: ignore[assignment]
    return gates


def close_gates(pair: Pair) -> None:
    """Give a pair's factor modules their own classes back."""
    for module in pair.factor_modules:
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]
            del module.gate
