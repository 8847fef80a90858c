"""What has to be known about optimizers: who holds the pairs, what a step means, and the state it keeps."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rmlora.errors import AttachError
from rmlora.leaves import copy_of
from rmlora.pairs import Factors, Pair, Stack
from rmlora.shards import copy_each, whole

Group = dict[str, Any]

_PREFIX = "rmlora_"
"""Every key we add to an optimizer's groups or state begins with this."""


def groups_by_parameter(optimizer: Optimizer) -> dict[int, Group]:
    """Return the parameter group of each parameter, keyed by `id(parameter)`."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def live_optimizers(parameters: Iterable[Tensor]) -> list[Optimizer]:
    """Find the optimizers alive in this process that hold any of `parameters`.

    Walks the garbage collector's objects, which takes tens of milliseconds, so it is for the first step only.
    Wrappers that share the wrapped optimizer's groups (Accelerate's) count once.
    """
    wanted = {id(parameter) for parameter in parameters}
    found: list[Optimizer] = []
    for candidate in gc.get_objects():
        if not issubclass(type(candidate), Optimizer) or isinstance(getattr(candidate, "optimizer", None), Optimizer):
            continue
        if any(id(p) in wanted for group in getattr(candidate, "param_groups", ()) for p in group["params"]):
            found.append(candidate)
    return found


def is_phantom_step(optimizer: Optimizer, groups: Sequence[Group], pairs: Sequence[Pair]) -> bool:
    """Whether this step only creates the optimizer's state and must not count.

    `torch.distributed.checkpoint`'s `get_optimizer_state_dict` steps once with zero gradients at learning rate 0. A
    warm-up that starts at learning rate 0 has gradients.
    """
    parameters = [p for pair in pairs for p in pair.parameters]
    # In this order, so that a learning rate kept on the device is read at the first step only.
    if any(optimizer.state.get(p) for p in parameters):
        return False
    if any(float(group["lr"]) != 0.0 for group in groups):
        return False
    return not any(p.grad is not None and bool(whole(p.grad).any()) for p in parameters)


def found_inf(optimizer: Optimizer) -> bool:
    """Whether a scaler told a fused optimizer to skip this step."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def refuse_foreign_parameters(pairs: Sequence[Pair]) -> None:
    """Raise when factors are no longer whole parameters that an ordinary optimizer can hold."""
    for pair in pairs:
        for parameter in pair.parameters:
            if reason := _foreign(parameter, pair.min_dim):
                raise AttachError(f"{pair.name}: {reason}")


def _foreign(parameter: Tensor, min_dim: int) -> str | None:
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        return (
            "DeepSpeed ZeRO flattens and partitions LoRA factors; use DDP (adapters are small) or FSDP2 (fully_shard)"
        )
    if type(parameter).__name__ == "FlatParameter" or hasattr(parameter, "_is_flat_param"):
        return "FSDP1 flattens LoRA factors; use DDP or FSDP2 (fully_shard)"
    if not isinstance(parameter, torch.nn.Parameter) or parameter.dim() < min_dim:
        return "FSDP1 replaced the LoRA factor by a view of a flattened parameter; use DDP or FSDP2 (fully_shard)"
    return None


def moments_of(optimizer: Optimizer, stack: Stack) -> dict[str, Factors]:
    """Return the optimizer's per-element state of a stack's factors, by name (`exp_avg`, ...), as copies."""
    sides = list(zip(*(pair.parameters for pair in stack.pairs), strict=True))
    names = [
        name
        for name, value in optimizer.state.get(sides[0][0], {}).items()
        if isinstance(value, Tensor) and value.shape == sides[0][0].shape and not name.startswith(_PREFIX)
    ]
    stacked = {}
    for name in names:
        if all(name in optimizer.state.get(p, {}) for side in sides for p in side):
            A, B = (torch.stack([whole(optimizer.state[p][name]).flatten(1) for p in side]) for side in sides)
            stacked[name] = Factors(A, B)
    return stacked


def shared_moments(optimizer: Optimizer, stack: Stack) -> list[str]:
    """Names of state that an optimizer keeps per row or column of a matrix (Adafactor's factors), not per element."""
    names = set()
    for parameter in (p for pair in stack.pairs for p in pair.parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            is_ours = name.startswith(_PREFIX)
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape != parameter.shape and not is_ours:
                names.add(name)
    return sorted(names)


def write_moments(optimizer: Optimizer, stack: Stack, moments: dict[str, Factors]) -> None:
    """Write per-element state back into the optimizer, in place."""
    targets, sources = [], []
    for name, factors in moments.items():
        for row, pair in enumerate(stack.pairs):
            for parameter, value in zip(pair.parameters, (factors.A[row], factors.B[row]), strict=True):
                target = optimizer.state[parameter][name]
                targets.append(target)
                sources.append(value.view(target.shape))
    copy_each(targets, sources)


def restart(optimizer: Optimizer, pairs: Iterable[Pair]) -> None:
    """Set what an optimizer remembers of these pairs to zero, its step count included; in place."""
    for parameter in (p for pair in pairs for p in pair.parameters):
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            if name.startswith(_PREFIX):
                continue
            if not isinstance(value, Tensor):
                state[name] = 0 if name == "step" else value
            elif value.shape == parameter.shape and not value.is_floating_point():
                raise AttachError(f"the optimizer keeps {name} as {value.dtype}, which cannot begin anew; use AdamW")
            elif value.shape == parameter.shape or name == "step" or name.startswith("exp_avg"):
                value.zero_()


def write_counters(groups: Iterable[Group], adapter: str, step: int, seed: int) -> None:
    """Put our two integers where the optimizer's own checkpoint carries them."""
    for group in groups:
        group[f"{_PREFIX}step_{adapter}"] = step
        group[f"{_PREFIX}seed_{adapter}"] = seed


def read_counters(groups: Iterable[Group], adapter: str) -> tuple[int, int] | None:
    """Return (step, seed) as an optimizer's groups carry them; None if they carry none."""
    for group in groups:
        if f"{_PREFIX}step_{adapter}" in group:
            return int(group[f"{_PREFIX}step_{adapter}"]), int(group[f"{_PREFIX}seed_{adapter}"])
    return None


def write_siblings(groups: Iterable[Group], adapter: str, number: int) -> None:
    """Put which layers share their input beside the counters; a number, as distributed checkpoints take no text."""
    for group in groups:
        group[f"{_PREFIX}siblings_{adapter}"] = number


def read_siblings(groups: Iterable[Group], adapter: str) -> int | None:
    """Return what `write_siblings` wrote; None if nothing."""
    key = f"{_PREFIX}siblings_{adapter}"
    return next((int(group[key]) for group in groups if key in group), None)


def write_state(optimizer: Optimizer, adapter: str, stack: Stack, tensors: dict[str, Tensor]) -> None:
    """Put a stack's state tensors into the optimizer's state, pair by pair, under A's parameter."""
    stateless = not any(optimizer.state.values())
    for row, pair in enumerate(stack.pairs):
        parameter = pair.parameters[0]
        # AdamW takes any key for a sign that it has initialised the parameter already.
        if stateless or optimizer.state.get(parameter):
            for key, tensor in tensors.items():
                optimizer.state[parameter][f"{_PREFIX}{adapter}/{key}"] = _encode(tensor[row], parameter.dtype)


def read_state(optimizer: Optimizer, adapter: str, stack: Stack, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a stack's state tensors as the optimizer carries them; what it lacks stays as in `tensors`."""
    loaded = {key: copy_of(tensor) for key, tensor in tensors.items()}
    for row, pair in enumerate(stack.pairs):
        carried = optimizer.state.get(pair.parameters[0], {})
        for key, tensor in loaded.items():
            if f"{_PREFIX}{adapter}/{key}" in carried:
                tensor.detach()[row] = _decode(carried[f"{_PREFIX}{adapter}/{key}"], tensor[row])
    return loaded


def _encode(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # `load_state_dict` casts every tensor to its parameter's dtype. Bytes survive any float dtype exactly.
    if tensor.dtype == dtype:
        return tensor.detach().clone()
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).clone()


def _decode(carried: Tensor, like: Tensor) -> Tensor:
    if carried.shape == like.shape and carried.dtype == like.dtype:
        return carried
    return carried.to(torch.uint8).view(like.dtype).reshape(like.shape).to(like.device)
