"""The ways in which several instances of a model can be computed, from the cheapest on, and the choice among them.

Whether a cheap way is right for a model is not only reasoned about: on the first rows of a first batch each way is
compared with what it stands for, one pass per instance, and the first that gives the same is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.instance_rows import NotUnderstoodError, batch_size, fields_of, find_blocks, first_rows, stack_inputs
from rmlora.live import LiveAdapter
from rmlora.sampling import Draws, sampling
from rmlora.shared_pass import LoopedBlocks, StackedBatch, StackedBlocks

_FEW = 2  # rows and instances that are computed both ways
# How far two ways may be apart, relative to the largest number: what rounding puts between them.
_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}
_ROUGH = 3e-2  # of half precision; on a GPU float32 may be rounded half as finely inside
_FLOOR = 0.1  # numbers smaller than this count as this

Given = Mapping[Any, Any]


def call(model: nn.Module, given: Given) -> Any:
    """Call a model with inputs by position (an int) and by name."""
    positions = [given[i] for i in range(len(given)) if i in given]
    return model(*positions, **{name: value for name, value in given.items() if isinstance(name, str)})


class InstancePasses:
    """Compute instances of a model, all rows of the first, then all of the second, and so on.

    Args:
        model: in evaluation mode while it is run.
        adapters: whose methods draw.
        draws: what their draws depend on.
    """

    def __init__(self, model: nn.Module, adapters: Sequence[LiveAdapter], draws: Draws) -> None:
        self.model = model
        self.adapters = adapters
        self.draws = draws
        self.layers = [pair.layer for adapter in adapters for pair in adapter.pairs]
        self.blocks = find_blocks(model, self.layers)
        if self.blocks is None:
            self._ways = ["stacked", "single"]
            self._why = "no single list of blocks holds the adapted modules"
        else:
            self._ways = ["shared", "looped", "stacked", "single"]
            self._why = ""
        self._checked = 0

    @property
    def path(self) -> str:
        """The way that is taken, and why not a cheaper one."""
        name = "" if self.blocks is None else self.blocks.name
        told = {
            "shared": f"shared up to {name}",
            "looped": f"shared up to {name}, then block by block",
            "stacked": "the whole batch stacked",
            "single": "one pass per instance",
        }[self._ways[0]]
        return f"{told}: {self._why}" if self._why else told

    def run(self, given: Given, start: int, count: int) -> Any:
        """Compute instances `start` to `start + count` of a batch.

        Args:
            given: inputs, each beginning with the batch.
            start: number of the first instance.
            count: how many.

        Returns:
            The model's outputs with `count` times the rows of the batch.
        """
        if count == 1:
            return self._single(given, start, 1)
        rows = min(batch_size(given), _FEW)
        if rows > self._checked:
            self._choose(first_rows(given, rows))
            self._checked = rows
        while True:
            try:
                return self._try(self._ways[0], given, start, count)
            except torch.OutOfMemoryError:
                raise
            except (NotUnderstoodError, RuntimeError) as error:
                self._give_up(error)

    def _choose(self, given: Given) -> None:
        """Keep the first way that gives on a few rows what one pass per instance gives."""
        wanted = fields_of(self._single(given, 0, _FEW))
        while self._ways[0] != "single":
            try:
                found = fields_of(self._try(self._ways[0], given, 0, _FEW))
            except torch.OutOfMemoryError:
                raise
            except (NotUnderstoodError, RuntimeError, ValueError) as error:
                self._give_up(error)
                continue
            if all(_agree(found.get(name), value) for name, value in wanted.items()):
                return
            self._give_up(NotUnderstoodError("cheaper ways gave other outputs"))

    def _give_up(self, error: Exception) -> None:
        if self._ways[0] == "single":
            raise error
        self._ways.pop(0)
        self._why = " ".join(str(error).split())[:160]

    def _try(self, way: str, given: Given, start: int, count: int) -> Any:
        size = batch_size(given)
        if way == "single":
            return self._single(given, start, count)
        with sampling(self.adapters, self.draws, start, count):
            if way == "stacked" or self.blocks is None:
                with StackedBatch(self.layers, size, count):
                    outputs = call(self.model, stack_inputs(given, count))
            elif way == "shared":
                with StackedBlocks(self.blocks, self.layers, size, count):
                    outputs = call(self.model, given)
            else:
                with LoopedBlocks(
                    self.blocks, self.layers, size, count, lambda i: sampling(self.adapters, self.draws, start + i, 1)
                ):
                    outputs = call(self.model, given)
        for name, value in fields_of(outputs).items():
            if value.shape[0] != size * count:
                raise NotUnderstoodError(f"{name} came out with {value.shape[0]} rows, not {count} times {size}")
        return outputs

    def _single(self, given: Given, start: int, count: int) -> Any:
        outputs: list[Any] = []
        for instance in range(start, start + count):
            with sampling(self.adapters, self.draws, instance, 1):
                outputs.append(call(self.model, given))
        if count == 1:
            return outputs[0]
        joined = {name: torch.cat([fields_of(one)[name] for one in outputs]) for name in fields_of(outputs[0])}
        return joined["logits"] if isinstance(outputs[0], Tensor) else type(outputs[0])(**joined)


def _agree(found: Tensor | None, wanted: Tensor) -> bool:
    if found is None or found.shape != wanted.shape:
        return False
    is_rough = wanted.device.type != "cpu" or torch.is_autocast_enabled(wanted.device.type)
    rounding = _ROUGH if is_rough and wanted.dtype != torch.float64 else _ROUNDING.get(wanted.dtype, _ROUGH)
    return bool((found - wanted).abs().max() <= rounding * wanted.abs().max().clamp(min=_FLOOR))
