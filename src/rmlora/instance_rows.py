"""Several instances of a model side by side: the rows of a batch repeated, and the blocks in which instances differ.

Instance i of N has rows i * B to (i + 1) * B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rmlora.errors import MethodError

_BATCH = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")
_WITHOUT_BATCH = ("cache_position", "head_mask")


class NotUnderstoodError(Exception):
    """A model does something whose meaning for several instances at once is not known."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The repeated blocks of a model, from the first that holds an adapted module.

    Attributes:
        name: of that block, in the model.
        blocks: that block and those behind it.
    """

    name: str
    blocks: tuple[nn.Module, ...]


def find_blocks(model: nn.Module, layers: Sequence[nn.Module]) -> Blocks | None:
    """Find the list of blocks that holds the adapted modules; None where there is not exactly one.

    Args:
        model: that holds them.
        layers: the adapted modules. Those outside every list are left to who runs the model, and sees when they run.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        >>> find_blocks(model, [model[1]]).name
        '1'
    """
    names = {id(module): name for name, module in model.named_modules()}
    firsts: dict[str, int] = {}
    for layer in layers:
        parts = names[id(layer)].split(".")
        for i in range(len(parts)):
            prefix = ".".join(parts[:i])
            container = model.get_submodule(prefix)
            if isinstance(container, nn.ModuleList | nn.Sequential):
                index = [name for name, _ in container.named_children()].index(parts[i])
                firsts[prefix] = min(index, firsts.get(prefix, index))
                break
    if len(firsts) != 1:
        return None
    prefix, first = next(iter(firsts.items()))
    children = list(model.get_submodule(prefix).named_children())[first:]
    return Blocks(f"{prefix}.{children[0][0]}".lstrip("."), tuple(block for _, block in children))


def stack_rows(x: Tensor, instances: int) -> Tensor:
    """Repeat a batch for every instance, `(B, ...)` to `(instances * B, ...)`.

    Example:
        >>> import torch
        >>> stack_rows(torch.tensor([1, 2]), 2).tolist()
        [1, 2, 1, 2]
    """
    return x.unsqueeze(0).expand(instances, *x.shape).reshape(instances * x.shape[0], *x.shape[1:])


def batch_size(inputs: Mapping[Any, Any]) -> int:
    """Read the size of the batch off a model's inputs.

    Raises:
        MethodError: no input is a tensor.

    Example:
        >>> import torch
        >>> batch_size({"use_cache": False, "input_ids": torch.zeros(3, 5)})
        3
    """
    named = [inputs.get(name) for name in _BATCH]
    for value in (*named, *inputs.values()):
        if isinstance(value, Tensor) and value.dim():
            return value.shape[0]
    raise MethodError("the ensemble was given no tensor to predict from")


def check_batch(inputs: Mapping[Any, Any]) -> int:
    """Refuse inputs of which the batch is not known; return its size.

    Raises:
        MethodError: a tensor does not begin with the batch.
    """
    size = batch_size(inputs)
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or value.dim() == 0 or (name == "position_ids" and value.shape[0] == 1):
            continue
        if name in _WITHOUT_BATCH or value.shape[0] != size:
            raise MethodError(
                f"{name!r} of shape {tuple(value.shape)} does not begin with the batch of {size}, so the ensemble "
                "cannot stack it; leave it out"
            )
    return size


def stack_inputs(inputs: Mapping[Any, Any], instances: int) -> dict[Any, Any]:
    """Stack a whole batch, input by input.

    Args:
        inputs: of the model, by name or position, from `check_batch`.
        instances: how many.
    """
    size = batch_size(inputs)
    return {name: stack_rows(value, instances) if _has_batch(value, size) else value for name, value in inputs.items()}


def first_rows(inputs: Mapping[Any, Any], count: int) -> dict[Any, Any]:
    """Take the first examples of a batch."""
    size = batch_size(inputs)
    return {name: value[:count] if _has_batch(value, size) else value for name, value in inputs.items()}


def fields_of(outputs: Any) -> dict[str, Tensor]:
    """Name the tensors of a model's outputs that begin with the batch; a bare tensor is `logits`.

    Raises:
        MethodError: the outputs have no names.
    """
    if isinstance(outputs, Tensor):
        return {"logits": outputs}
    if not isinstance(outputs, Mapping):
        raise MethodError(f"an ensemble averages tensors and named outputs, not {type(outputs).__name__}")
    return {name: value for name, value in outputs.items() if isinstance(value, Tensor) and value.dim()}


def _has_batch(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size
