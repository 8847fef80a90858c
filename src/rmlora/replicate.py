"""Training over N instances: every batch repeated once for each, all in one pass or in chunks, under any trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from rmlora.attach import attach
from rmlora.binding import Binding
from rmlora.errors import AttachError, MethodError
from rmlora.handle import Attached
from rmlora.transform import REPLICATED, Transform

_LEFT_ALONE = ("cache_position",)
_COUNTS = ("num_items_in_batch",)


def repeat_rows(batch: Any, num: int, rows: int | None = None) -> Any:
    """Repeat a batch `num` times along the first dimension, whole batch after whole batch.

    Args:
        batch: a tensor, or mappings, lists and tuples that hold some. What does not have the batch's number of rows
            stays as it is; `num_items_in_batch`, by which transformers' language models divide their loss, grows.
        num: how many times, >= 1.
        rows: of the batch; None takes those of the first tensor found.

    Returns:
        New containers; mappings become dicts.

    Example:
        >>> repeat_rows({"x": torch.tensor([1, 2]), "scale": torch.ones(3)}, 2)
        {'x': tensor([1, 2, 1, 2]), 'scale': tensor([1., 1., 1.])}
    """
    rows = count_rows(batch) if rows is None else rows
    if isinstance(batch, Tensor):
        is_batched = batch.dim() > 0 and batch.shape[0] == rows
        return batch.repeat(num, *[1] * (batch.dim() - 1)) if is_batched else batch
    if isinstance(batch, Mapping):
        return {key: _repeat_named(key, value, num, rows) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(repeat_rows(value, num, rows) for value in batch)
    return batch


def count_rows(batch: Any) -> int:
    """Return the rows of the first tensor in a batch; 0 if there is none.

    Example:
        >>> count_rows(({"x": torch.ones(3, 2)},))
        3
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() > 0 else 0
    inside: Iterable[Any] = batch.values() if isinstance(batch, Mapping) else batch if _is_sequence(batch) else ()
    return next(filter(None, map(count_rows, inside)), 0)


class ReplicatedForward:
    """The forward pass of one model instance, over all instances of a batch, until `restore`."""

    def __init__(self, model: nn.Module, binding: Binding, chunk: int | None, outside_loss: bool) -> None:
        self.model = model
        self.binding = binding
        self.chunk = chunk
        self.outside_loss = outside_loss
        self.is_checked = False
        self.is_active = True
        self.__wrapped__ = model.forward
        model.__dict__["forward"] = self

    def restore(self) -> None:
        """Give the model its own forward pass back, or only pass calls on where something wrapped it since."""
        self.is_active = False
        self.binding.instance, self.binding.instances = 0, 1
        if self.model.__dict__.get("forward") is self:
            del self.model.__dict__["forward"]

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator,no-untyped-call]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute all instances in training; anything else is passed on."""
        num = self.binding.method.instances
        if not self.is_active or num == 1 or not self.model.training or self._is_idle():
            return self.__wrapped__(*args, **kwargs)
        if not torch.is_grad_enabled():
            self.binding.instance, self.binding.instances = 0, 1
            return self.__wrapped__(*args, **kwargs)
        rows = count_rows((args, kwargs))
        if rows == 0:
            raise AttachError("the model was called without any tensor, so there is no batch to repeat for instances")
        size = self._check(rows, args, kwargs)
        counts = [min(size, num - first) for first in range(0, num, size)]
        outputs = []
        for i, count in enumerate(counts):
            given = (i * size, count, rows, args, kwargs)
            # Recomputed in backward, one chunk after another: no more than one is in memory, each with its own number.
            is_whole = count == num
            outputs.append(
                self._compute(*given) if is_whole else checkpoint(self._compute, *given, use_reentrant=False)
            )
        is_inside = not self.outside_loss
        if is_inside and not _has_loss(outputs[0]):
            raise AttachError(
                f"the model returned no loss, and one computed outside would meet {num} rows for each row of the "
                f"batch: pass the model its labels, or repeat them, rmlora.repeat_rows(labels, {num}), and attach "
                "with outside_loss=True"
            )
        return _join(outputs, counts, rows, is_inside)

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator,no-untyped-call]
    def _compute(self, first: int, count: int, rows: int, args: Any, kwargs: Any) -> Any:
        # Numbers stay set until the next pass: blocks that are recomputed inside need them in backward.
        self.binding.instance, self.binding.instances = first, count
        return self.__wrapped__(*repeat_rows(args, count, rows), **repeat_rows(kwargs, count, rows))

    def _is_idle(self) -> bool:
        pair = self.binding.pairs[0]
        return self.binding.adapter not in pair.layer.active_adapters  # type: ignore[operator]

    def _check(self, rows: int, args: Any, kwargs: Any) -> int:
        """Return how many instances to hold at a time, after making sure once that they can be stacked."""
        num = self.binding.method.instances
        size = num if self.chunk is None else min(self.chunk, num)
        if size == 1 or self.is_checked or not self.binding.forward_hooks:
            return size
        shared = self._find_shared(rows, args, kwargs)
        self.is_checked = True
        if shared is None:
            return size
        if self.chunk is not None:
            raise AttachError(
                f"the input of {shared} has no rows for each example (relative positions, say), so instances cannot "
                f"be stacked; chunk={self.chunk} must be 1, or left open"
            )
        self.chunk = 1
        return 1

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _find_shared(self, rows: int, args: Any, kwargs: Any) -> str | None:
        """Name a module whose input is not two equal halves when the batch is twice the same; None if there is none."""
        binding, shared = self.binding, list[str]()
        modes = [(module, module.training) for module in self.model.modules()]
        with ExitStack() as stack:
            stack.callback(setattr, binding, "forward_hooks", binding.forward_hooks)
            stack.callback(_set_modes, modes)
            for pair in binding.pairs:
                hook = pair.layer.register_forward_pre_hook(
                    lambda layer, given, name=pair.name: None if _is_doubled(given[0]) else shared.append(name)
                )
                stack.callback(hook.remove)
            binding.forward_hooks = frozenset()
            self.model.eval()  # without dropout, which would tell the halves apart
            self._compute(0, 2, rows, args, kwargs)
        return next(iter(shared), None)


def attach_replicated(
    model: nn.Module,
    method: Transform,
    *,
    chunk: int | None = None,
    outside_loss: bool = False,
    provides: Iterable[str] = (),
    **settings: Any,
) -> Attached:
    """Make a PEFT LoRA model train by a method whose loss is a mean over several instances of every batch.

    As `rmlora.attach`, and every training forward pass of `model` repeats its batch once for each instance: all
    tensors with the batch's number of rows, in arguments and in mappings inside them. Nothing else changes, in a bare
    loop or under a trainer. The loss that the model returns is the mean over instances, its other outputs too, with
    the rows of the batch. Evaluation is not repeated.

    The mean over a repeated batch is the mean over instances for every loss that is a mean over rows or tokens, and
    where transformers passes `num_items_in_batch`. It is not for sums over the batch, for losses that compare rows with
    each other (contrastive ones), nor for batch normalisation.

    Args:
        model: a PEFT model, called as a whole. Changed in place: its `forward` is wrapped on the instance.
        method: with `method.instances` of one, this is `attach`.
        chunk: how many instances to hold in memory at a time, >= 1; None holds all, stacked in one pass, or one at a
            time where an adapted module's input is shared by the whole batch, which the first pass finds out. With
            several chunks each is computed again in backward: one more forward pass for every instance.
        outside_loss: for loops that compute the loss from the model's outputs: they get all rows, instance after
            instance, and need the labels of `rmlora.repeat_rows(labels, instances)`.
        provides: what else the caller sees to; as in `attach`.
        **settings: of `attach`: adapter_name, optimizer, seed, fast.

    Returns:
        A handle; `detach` also ends the repetition.

    Raises:
        AttachError: as `attach`; at the first forward pass, if the model returns no loss and `outside_loss` is False,
            or instances cannot be stacked in chunks as asked.
        MethodError: chunk is below 1, or as `attach`.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> import rmlora
        >>> base = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"]))
        >>> handle = attach_replicated(model, rmlora.lora_dropout(0.5, instances=3), outside_loss=True)
        >>> model(torch.ones(2, 8)).shape
        torch.Size([6, 2])
    """
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise MethodError(f"chunk={chunk}; it must be a whole number of instances >= 1, or None for all")
    handle = attach(model, method, provides={REPLICATED, *provides}, **settings)
    # Chunks are passes of the model itself: DDP synchronises once, around them all.
    whole = model.module if isinstance(model, DistributedDataParallel) else model
    handle.restores(ReplicatedForward(whole, handle._binding, chunk, outside_loss))
    return handle


def _repeat_named(key: Any, value: Any, num: int, rows: int) -> Any:
    if key in _COUNTS and value is not None:
        return value * num
    return value if key in _LEFT_ALONE else repeat_rows(value, num, rows)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, is_training in modes:
        module.training = is_training


def _is_doubled(x: Tensor) -> bool:
    if x.shape[0] % 2:
        return False
    first, second = x.float().chunk(2)
    return bool((first - second).norm() <= 1e-2 * first.norm())


def _has_loss(output: Any) -> bool:
    first = output.get("loss") if isinstance(output, Mapping) else output[0] if _is_sequence(output) else output
    return isinstance(first, Tensor) and first.dim() == 0


def _join(outputs: Sequence[Any], counts: Sequence[int], rows: int, is_mean: bool) -> Any:
    """Join the outputs of all chunks: losses averaged; rows averaged over instances, or all of them."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return _join_tensors(outputs, counts, rows, is_mean)
    if isinstance(first, Mapping):
        joined = {key: _join([output[key] for output in outputs], counts, rows, is_mean) for key in first}
        return type(first)(**joined)
    if _is_sequence(first):
        parts = [_join(values, counts, rows, is_mean) for values in zip(*outputs, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first


def _join_tensors(outputs: Sequence[Tensor], counts: Sequence[int], rows: int, is_mean: bool) -> Tensor:
    num, first = sum(counts), outputs[0]
    if first.dim() == 0:
        parts = [output * (count / num) for output, count in zip(outputs, counts, strict=True)]
        return first if len(outputs) == 1 else torch.stack(parts).sum()
    if any(output.shape[0] != count * rows for output, count in zip(outputs, counts, strict=True)):
        return first
    stacked = torch.cat(list(outputs)) if len(outputs) > 1 else first
    if not is_mean:
        return stacked
    return stacked.reshape(num, rows, *stacked.shape[1:]).mean(dim=0) if first.is_floating_point() else first[:rows]
