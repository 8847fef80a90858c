"""One pass of a model for several instances: once up to the first block that differs, then for each of them.

Behind that point a block is either given the rows of all instances (`StackedBlocks`), for which its other inputs must
be known by name, or called once per instance on its rows alone (`LoopedBlocks`), for which they need not. The second
is for models that hand an adapted module something without a batch, as DeBERTa does with its relative positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.instance_rows import Blocks, NotUnderstoodError, stack_rows

# Inputs of a block, by the names transformers gives them. A tensor behind one of these names begins with the batch
# (or with 1) where it has at least so many dimensions, and otherwise has none.
_BATCH_FIRST = {
    "attention_mask": 2,
    "encoder_attention_mask": 2,
    "encoder_hidden_states": 3,
    "position_embeddings": 3,
    "position_ids": 2,
    "query_states": 3,
}
_WITHOUT_BATCH = ("rel_embeddings", "relative_pos", "cache_position")


class _Pass:
    """While entered, watches every adapted module: it must be given the rows of all instances."""

    def __init__(self, layers: Sequence[nn.Module], size: int, instances: int) -> None:
        self.layers = layers
        self.size = size
        self.instances = instances
        self.is_stacked = False
        self.is_looping = False
        self._hooks: list[Any] = []

    def __enter__(self) -> _Pass:
        self._hooks += [layer.register_forward_pre_hook(self._check_layer) for layer in self.layers]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _check_layer(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if self.is_looping:
            return
        if not self.is_stacked:
            raise NotUnderstoodError("an adapted module runs in front of the blocks")
        rows = args[0].shape[0] if args and isinstance(args[0], Tensor) else 0
        if not rows or rows % (self.size * self.instances):
            raise NotUnderstoodError(f"{rows} rows enter an adapted module, not {self.instances} times {self.size}")

    def _check_rows(self, value: Any) -> Tensor:
        wanted = self.size * (self.instances if self.is_stacked else 1)
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] != wanted:
            raise NotUnderstoodError(f"a block is not given the {wanted} rows that were expected")
        return value


class StackedBatch(_Pass):
    """A pass over a batch that is stacked from the start."""

    def __enter__(self) -> _Pass:
        self.is_stacked = True
        return super().__enter__()


class StackedBlocks(_Pass):
    """A pass over B rows that is stacked where the first block with an adapted module begins.

    Args:
        blocks: that block and those behind it.
        layers: the adapted modules.
        size: B.
        instances: how many.
    """

    def __init__(self, blocks: Blocks, layers: Sequence[nn.Module], size: int, instances: int) -> None:
        super().__init__(layers, size, instances)
        self.blocks = blocks
        self._stacked: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> _Pass:
        # A block may be an adapted module itself, and has to be entered first.
        self._hooks = [block.register_forward_pre_hook(self._enter, with_kwargs=True) for block in self.blocks.blocks]
        return super().__enter__()

    def _enter(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = list(inspect.signature(type(block).forward).parameters)[1:]
        if len(args) > len(names):
            raise NotUnderstoodError(f"{type(block).__name__} takes inputs without names")
        given = tuple(self._expand(name, value, names[0]) for name, value in zip(names, args, strict=False))
        named = {name: self._expand(name, value, names[0]) for name, value in kwargs.items()}
        self.is_stacked = True
        return given, named

    def _expand(self, name: str, value: Any, first: str) -> Any:
        if name == first:
            value = self._check_rows(value)
            return value if self.is_stacked else stack_rows(value, self.instances)
        if value is None or isinstance(value, bool | int | float | str | torch.dtype):
            return value
        if isinstance(value, tuple | list):
            return type(value)(self._expand(name, one, first) for one in value)
        if not isinstance(value, Tensor):
            raise NotUnderstoodError(f"a block is given {name}, a {type(value).__name__}")
        if name in _WITHOUT_BATCH:
            return value
        needed = _BATCH_FIRST.get(name)
        if needed is None or (value.dim() == 2 and "mask" in name and value.is_floating_point()):
            raise NotUnderstoodError(f"a block is given {name} {tuple(value.shape)}, of which the batch is not known")
        if value.dim() >= needed and value.shape[0] == self.size:
            return self._once(value)
        if value.dim() < needed or value.shape[0] in (1, self.size * self.instances):
            return value
        raise NotUnderstoodError(f"a block is given {name} {tuple(value.shape)} for a batch of {self.size}")

    def _once(self, value: Tensor) -> Tensor:
        """Stack a tensor that every block is given, the first time; it is kept, so that its id stays its own."""
        if id(value) not in self._stacked:
            self._stacked[id(value)] = value, stack_rows(value, self.instances)
        return self._stacked[id(value)][1]


class LoopedBlocks(_Pass):
    """A pass over B rows in which each block from the first with an adapted module on is called once per instance.

    Args:
        blocks: those blocks.
        layers: the adapted modules.
        size: B.
        instances: how many.
        alone: a context in which methods draw for one instance, by its number.
    """

    def __init__(
        self,
        blocks: Blocks,
        layers: Sequence[nn.Module],
        size: int,
        instances: int,
        alone: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        super().__init__(layers, size, instances)
        self.blocks = blocks
        self.alone = alone
        self._before: list[Any] = []

    def __enter__(self) -> _Pass:
        for block in self.blocks.blocks:
            self._before.append(block.__dict__.get("forward"))
            block.forward = self._looped(block.forward)
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        for block, before in zip(self.blocks.blocks, self._before, strict=True):
            del block.forward
            if before is not None:
                block.forward = before

    def _looped(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def looped(*args: Any, **kwargs: Any) -> Any:
            if not args:
                raise NotUnderstoodError("a block is given everything by name")
            if any(self._is_stacked_already(value) for value in (*args[1:], *kwargs.values())):
                raise NotUnderstoodError("a block is given more than one input that comes from another block")
            rows = self._check_rows(args[0])
            starts = range(0, self.size * self.instances, self.size)
            parts = [rows[i : i + self.size] if self.is_stacked else rows for i in starts]
            self.is_looping = True
            try:
                outputs = []
                for i, part in enumerate(parts):
                    with self.alone(i):
                        outputs.append(forward(part, *args[1:], **kwargs))
            finally:
                self.is_looping = False
            self.is_stacked = True
            return self._join(outputs)

        return looped

    def _is_stacked_already(self, value: Any) -> bool:
        return self.is_stacked and isinstance(value, Tensor) and self.size * self.instances in value.shape[:1]

    def _join(self, outputs: list[Any]) -> Any:
        first = outputs[0]
        if first is None:
            return None
        if isinstance(first, tuple | list):
            return type(first)(self._join(list(several)) for several in zip(*outputs, strict=True))
        if isinstance(first, Tensor) and first.dim() > 1 and first.shape[0] == self.size:
            return torch.cat(outputs)
        raise NotUnderstoodError(f"a block returns a {type(first).__name__} without the batch")
