"""PEFT's linear layers on the fast path where they can take it; everywhere else PEFT's own forward.

Attaching swaps the class of `peft.tuners.lora.Linear` for a subclass with the same parameters. Each call decides anew,
so that switching adapters off, merging, and hooks that others add stay right. Evaluation is PEFT's own forward, bit for
bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from rmlora.gates import Gate, GatedLinear, refuse_replica
from rmlora.kernels.correction import correct
from rmlora.kernels.cost import Way, choose_way
from rmlora.kernels.projection import Plan, Projection, project
from rmlora.pairs import Pair
from rmlora.shards import is_sharded

_FAST = "rmlora_fast"
"""Attribute of a swapped layer: its fast paths by adapter name."""

_MERGEABLE = (torch.float32, torch.float64)
"""Where adding s B A to a weight loses nothing that training could notice; bfloat16 loses most of an update."""

_TRANSPOSED = "transformers.pytorch_utils.Conv1D"
"""The linear layer whose weight is `(d_in, d_out)`; by name, because rmlora does not need transformers."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FastPath:
    """How one adapted linear layer is computed.

    Attributes:
        pair: the layer's pair.
        gates: the gates of A and B, which know what is kept.
        is_transposed: whether the frozen weight is `(d_in, d_out)`.
        is_plain: whether the frozen module computes `x W0^T + b` and nothing else.
        taken: how the last call in training went: "fused", "merged" or "added"; "reference: WHY"; or "not called yet".
    """

    def __init__(self, pair: Pair, gates: tuple[Gate, Gate]) -> None:
        self.pair = pair
        self.gates = gates
        kind = type(pair.layer.get_base_layer())  # type: ignore[operator]
        self.is_transposed = f"{kind.__module__}.{kind.__qualname__}" == _TRANSPOSED
        self.is_plain = kind is nn.Linear or self.is_transposed
        self.taken = "not called yet"

    def __call__(self, layer: Linear, x: Tensor) -> Tensor | None:
        """Return the layer's output, or None where only PEFT's own forward gives it."""
        if not layer.training:
            return None
        self._look_up(layer, x)
        is_shared = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        siblings = self.gates[0].adapter.siblings
        ready = siblings.take(self.pair, x) if is_shared else None
        if ready is not None:
            return ready
        if not self._is_plain(layer):
            return self._correct(layer, x)
        own = self.projection(layer, x)
        if own is None:
            return None
        if is_shared:
            siblings.observe(self.pair, x)
            return self._project_together(own, x)
        return project(x, [own])[0]

    def projection(self, layer: Linear, x: Tensor) -> Projection | None:
        """Return what the layer computes from x, or None where PEFT's own forward has to."""
        base = layer.base_layer
        weight = base.weight
        dtype = _compute_dtype(weight, x)
        A, B = (cast(Tensor, module.weight) for module in self.pair.factor_modules)
        if self._has_reason(layer, A, x, dtype) or not self._is_plain(layer):
            return None
        way: Way = "fused"
        if dtype in _MERGEABLE and weight.dtype == A.dtype == dtype:
            way = self._choose(x, weight, A)
        self.taken = way
        plan = Plan(float(layer.scaling[self.pair.adapter]), way, self.is_transposed, dtype)
        return Projection(plan, weight, base.bias, A, B, self.gates[0].rows, self.gates[1].rows)

    def _project_together(self, own: Projection, x: Tensor) -> Tensor:
        """Compute this layer's output and those of its siblings, which will ask for theirs."""
        adapter = self.gates[0].adapter
        others = {pair: adapter.fast[pair].projection(pair.layer, x) for pair in adapter.siblings.of(self.pair)}
        given = {pair: found for pair, found in others.items() if found is not None}
        y, *rest = project(x, [own, *given.values()])
        for pair, output in zip(given, rest, strict=True):
            adapter.siblings.put(pair, x, output)
        return y

    def _correct(self, layer: Linear, x: Tensor) -> Tensor | None:
        A, B = (cast(Tensor, module.weight) for module in self.pair.factor_modules)
        if self._has_reason(layer, A, x, x.dtype):
            return None
        self.taken = "added"
        scale = float(layer.scaling[self.pair.adapter])
        return correct(scale, layer.base_layer(x), x, A, B, self.gates[0].rows, self.gates[1].rows)

    def _has_reason(self, layer: Linear, A: Tensor, x: Tensor, dtype: torch.dtype) -> bool:
        """Whether PEFT's own forward has to run, and note why."""
        why = why_not(layer, self.pair, self.gates) or why_not_numbers(A, x, dtype)
        if why is not None:
            self.taken = f"reference: {why}"
        return why is not None

    def _is_plain(self, layer: Linear) -> bool:
        return self.is_plain and type(layer.base_layer.weight) in (nn.Parameter, Tensor)

    def _look_up(self, layer: Linear, x: Tensor) -> None:
        """Make sure that masks are this step's and on this device, as the gates would."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        refuse_replica(layer, self.pair)
        gate = self.gates[0]
        if not gate.adapter.located:
            gate.adapter.locate()
        if gate.rows is not None and gate.rows.device != x.device:
            gate.adapter.prepare()

    def _choose(self, x: Tensor, weight: Tensor, A: Tensor) -> Way:
        d_in, d_out = weight.shape if self.is_transposed else weight.shape[::-1]
        rows, r = self.gates[0].rows, A.shape[0]
        return choose_way(x.numel() // max(d_in, 1), d_in, d_out, r, r if rows is None else rows.shape[0])


Path = Callable[[Linear, Tensor], Tensor | None]
"""Computes a layer's output; None where PEFT's own forward has to."""


class FastLinear(Linear):  # type: ignore[misc]
    """PEFT's `Linear`, on the fast path for calls that can take it."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute what the parent computes."""
        active = self.active_adapters
        path: Path | None = getattr(self, _FAST).get(active[0]) if len(active) == 1 else None
        y = path(self, x) if path is not None and not args and not kwargs else None
        return cast(Tensor, super().forward(x, *args, **kwargs)) if y is None else y


def why_not(layer: Linear, pair: Pair, gates: tuple[Gate, Gate]) -> str | None:
    """Say why a layer has to take PEFT's own forward now; None if it does not."""
    base, factors = layer.base_layer, pair.factor_modules
    dropout = layer.lora_dropout[pair.adapter]
    if layer.disable_adapters:
        return "its adapters are disabled"
    if layer.merged:
        return "it is merged"
    if layer.active_adapters != [pair.adapter]:
        return "other adapters are active"
    if pair.adapter in layer.lora_variant:
        return pair.variant
    if type(dropout) is not nn.Identity and getattr(dropout, "p", 1.0) > 0.0:
        return "lora_dropout draws for every entry of its input"
    if any(type(module) is not GatedLinear or module.bias is not None for module in factors):
        return "A or B is more than a matrix"
    if any(module.__dict__[hooks] for module in (base, *factors) for hooks in _HOOKS):
        return "hooks on its inner modules"
    if base.weight.requires_grad:
        return "its frozen weight is trained too"
    if any(gate.kept is not None and gate.rows is None for gate in gates):
        return "its neighbours keep another number of directions"
    return None


def why_not_numbers(A: Tensor, x: Tensor, dtype: torch.dtype) -> str | None:
    """Say why products of these tensors are left to PEFT's own forward; None if they are not."""
    if not torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
            return "torch.func transforms"
        if torch.nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
            return "hooks on all modules"
    if is_sharded(A):
        return "its factors are in shards until their own modules are called"
    if not x.is_floating_point():
        return f"its input is {x.dtype}"
    if A.dtype not in (dtype, torch.float32) or (x.dtype != dtype and torch.float64 in (x.dtype, A.dtype)):
        return f"its factors are {A.dtype} and its products {dtype}"
    return None


def _compute_dtype(weight: Tensor, x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def can_be_fast(pair: Pair) -> bool:
    """Whether the pair's layer is of a class that has a fast form."""
    return type(pair.layer) in (Linear, FastLinear)


def open_fast(pair: Pair, path: Path) -> None:
    """Swap the class of a pair's layer, and let its calls take this path."""
    pair.layer.__class__ = FastLinear
    pair.layer.__dict__.setdefault(_FAST, {})[pair.adapter] = path


def close_fast(pair: Pair) -> None:
    """Give a layer its own class back once no adapter of it is fast."""
    paths = pair.layer.__dict__.get(_FAST, {})
    paths.pop(pair.adapter, None)
    if not paths and type(pair.layer) is FastLinear:
        pair.layer.__class__ = Linear
        pair.layer.__dict__.pop(_FAST, None)
