"""Parameters that FSDP2 keeps in shards: read as whole tensors, written back as shards; plain tensors pass through.

`fully_shard` makes each parameter, its gradient and the optimizer's moments DTensors, of which a process holds some
rows. What links compute needs all of them. Gathering is collective: every process of the job has to ask for the same
tensors in the same order, as it does in an optimizer step.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process may hold a part only.

    Example:
        >>> is_sharded(nn.Parameter(torch.ones(2)))
        False
    """
    kind = type(tensor)
    return kind is not nn.Parameter and kind is not Tensor and hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor, on every process; a plain tensor itself.

    Collective where the tensor is sharded.

    Example:
        >>> plain = torch.ones(2, 3)
        >>> whole(plain) is plain
        True
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_as(target: Tensor, value: Tensor) -> Tensor:
    """Return a whole tensor in the form in which `target` is kept; nothing is sent.

    Args:
        target: sharded or not.
        value: whole, of the target's shape, and the same on every process.

    Example:
        >>> value = torch.ones(2)
        >>> shard_as(torch.zeros(2), value) is value
        True
    """
    if not is_sharded(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(target.device, target.dtype), mesh, placements, src_data_rank=None)


def copy_each(targets: list[Tensor], values: list[Tensor]) -> None:
    """Write whole tensors into their targets, in place.

    Args:
        targets: sharded or not; changed.
        values: as many, of the same shapes and dtypes.
    """
    if any(map(is_sharded, targets)):
        for target, value in zip(targets, values, strict=True):
            target.copy_(shard_as(target, value))
    elif targets:
        torch._foreach_copy_(targets, values)


def add_each(targets: list[Tensor], values: list[Tensor]) -> None:
    """Add whole tensors to their targets, in place.

    Args:
        targets: sharded or not; changed.
        values: as many, of the same shapes and dtypes.
    """
    if any(map(is_sharded, targets)):
        for target, value in zip(targets, values, strict=True):
            target.add_(shard_as(target, value))
    elif targets:
        torch._foreach_add_(targets, values)


def has_shards(model: nn.Module) -> bool:
    """Whether a model holds sharded parameters now."""
    return any(map(is_sharded, model.parameters()))


def gather_state(model: nn.Module) -> dict[str, Any]:
    """Return a model's state with all that an adapter's files hold as whole tensors; the base stays in shards.

    Collective.
    """
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = model.state_dict()
    for name, value in state.items():
        if name in learning or "lora_" in name or "modules_to_save" in name:
            state[name] = whole(value)
    return state


@contextmanager
def at_rest() -> Iterator[None]:
    """Let modules hold the parameters that optimizers know, for as long as the block runs.

    Inside a forward pass FSDP2 puts whole tensors in their place, which are other parameters. Without FSDP2 nothing
    happens.
    """
    moved = []
    for known in _known_parameters():
        place = known._module_info
        for module, name in (
            (place.module, place.param_name),
            *zip(place.shared_modules, place.shared_param_names, strict=True),
        ):
            if module._parameters.get(name) is not known.sharded_param:
                moved.append((module, name, module._parameters[name]))
                module._parameters[name] = known.sharded_param
    try:
        yield
    finally:
        for module, name, parameter in moved:
            module._parameters[name] = parameter


def any_gradient(parameters: Iterable[Tensor]) -> bool:
    """Whether any of these has a gradient, be it where FSDP2 keeps one between micro-batches."""
    given = list(parameters)
    if any(parameter.grad is not None for parameter in given):
        return True
    ids = set(map(id, given))
    for known in _known_parameters():
        forms = known.sharded_param, getattr(known, "_unsharded_param", None)
        if not ids.isdisjoint(map(id, forms)):
            grads = *(getattr(form, "grad", None) for form in forms), known.unsharded_accumulated_grad
            if any(grad is not None for grad in grads):
                return True
    return False


def unknown_shards(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the sharded ones of these that no `fully_shard` keeps, such as tensor parallelism's."""
    sharded = [parameter for parameter in parameters if is_sharded(parameter)]
    known = {id(one.sharded_param) for one in _known_parameters()} if sharded else set()
    return [parameter for parameter in sharded if id(parameter) not in known]


def _known_parameters() -> list[Any]:
    """Return FSDP2's own records of all parameters it shards in this process.

    Walks the garbage collector's objects, which takes tens of milliseconds: a module has no way to what wraps it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    modules = [candidate for candidate in gc.get_objects() if issubclass(type(candidate), FSDPModule)]
    states = {id(state): state for state in (module._get_fsdp_state() for module in modules)}
    return [known for state in states.values() for group in _groups_of(state) for known in group.fsdp_params]


def _groups_of(state: Any) -> list[Any]:
    groups = getattr(state, "_fsdp_param_groups", None)  # before PyTorch 2.13 one at most
    return [group for group in ([state._fsdp_param_group] if groups is None else groups) if group is not None]
