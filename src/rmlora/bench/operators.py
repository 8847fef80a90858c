"""Where the time of a step goes: its operators by self time, and the share of matrix products among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmlora.bench.contenders import Contender
from rmlora.bench.memory import quieten_profiler

SORTS = ("matmul", "elementwise", "rest")

_MATMULS = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "addbmm",
    "_addmm_activation",
    "mv",
    "addmv",
    "dot",
    "linear",
    "matmul",
    "mkldnn_linear",
    "_linear_pointwise",
}
_ELEMENTWISE = {
    *("add", "sub", "rsub", "mul", "div", "addcmul", "addcdiv", "lerp", "neg", "abs", "sign", "pow", "square"),
    *("exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh", "sigmoid", "erf", "relu", "gelu", "silu"),
    *("tanh_backward", "sigmoid_backward", "threshold_backward", "gelu_backward", "silu_backward"),
    *("where", "masked_fill", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "eq", "ne", "lt", "le", "gt"),
    *("ge", "logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor"),
    *("copy", "zero", "fill", "native_dropout", "native_dropout_backward"),
    *("_fused_adamw", "_fused_adam"),
}


@dataclass(frozen=True)
class Operator:
    """One operator in a step.

    Attributes:
        name: the profiler's.
        calls: how often it ran.
        self_s: seconds in it and in nothing it called.
        sort: one of `SORTS`.
    """

    name: str
    calls: int
    self_s: float
    sort: str


def profile_step(contender: Contender, batch: dict[str, Tensor]) -> list[Operator]:
    """Record one step with torch.profiler; return its operators, the most expensive first."""
    quieten_profiler()
    on_gpu = contender.settings.device.startswith("cuda")
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, kinds.CUDA] if on_gpu else [kinds.CPU]
    with contender.alone(), torch.profiler.profile(activities=activities) as recorded:
        contender.step(batch)
        if on_gpu:
            torch.cuda.synchronize(contender.settings.device)
    return read_operators(recorded.key_averages(), on_gpu)


def read_operators(events: Iterable[Any], on_gpu: bool) -> list[Operator]:
    """Turn the profiler's averages into operators.

    Args:
        events: with `key`, `count`, `device_type` (an enum) and self times in microseconds.
        on_gpu: take the time of the kernels an operator launched, not of the launching. Kernels are listed once more
            by themselves; those are left out.
    """
    found = []
    for event in events:
        if event.device_type.name != "CPU":
            continue
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds > 0:
            found.append(Operator(event.key, event.count, microseconds / 1e6, sort_of(event.key)))
    return sorted(found, key=lambda operator: -operator.self_s)


def sort_of(name: str) -> str:
    """Say whether an operator multiplies matrices, works entry by entry, or does something else.

    Convolutions and attention in one kernel are something else, though they multiply matrices inside.

    Example:
        >>> sort_of("aten::addmm"), sort_of("aten::add_"), sort_of("aten::_foreach_mul_"), sort_of("aten::softmax")
        ('matmul', 'elementwise', 'elementwise', 'rest')
    """
    space, _, plain = name.rpartition("::")
    if space not in ("aten", "mkldnn"):
        return "rest"
    plain = plain.removeprefix("_foreach_").rstrip("_")
    if plain in _MATMULS:
        return "matmul"
    return "elementwise" if plain in _ELEMENTWISE else "rest"


def shares(operators: Sequence[Operator]) -> dict[str, float]:
    """Return what share of all self time each of `SORTS` has; zeros where nothing was recorded.

    Example:
        >>> shares([Operator("aten::mm", 1, 3.0, "matmul"), Operator("aten::add", 1, 1.0, "elementwise")])
        {'matmul': 0.75, 'elementwise': 0.25, 'rest': 0.0}
    """
    whole = sum(operator.self_s for operator in operators) or 1.0
    return {sort: sum(o.self_s for o in operators if o.sort == sort) / whole for sort in SORTS}
