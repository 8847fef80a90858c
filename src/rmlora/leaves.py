"""State tensors that learn by themselves: leaves of autograd, whose gradients backward leaves on them.

A link makes one with `requires_grad=True` in `init`. No optimizer knows it, so what an optimizer, a scaler and DDP do
for parameters is done here for leaves.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


def take_rows(value: Tensor, rows: Sequence[int]) -> Tensor:
    """Select rows of a state tensor; of a leaf the selection is a leaf too, with its rows of the gradient.

    Example:
        >>> leaf = torch.ones(3, 2, requires_grad=True)
        >>> leaf.sum().backward()
        >>> take_rows(leaf, [1]).grad
        tensor([[1., 1.]])
    """
    part = value.detach()[list(rows)]
    if value.requires_grad:
        part.requires_grad_()
        part.grad = None if value.grad is None else value.grad[list(rows)]
    return part


def put_rows(whole: Tensor | None, part: Tensor, rows: Sequence[int], num: int) -> Tensor:
    """Return `whole` with `part` in place of some rows; the gradients of leaves likewise.

    Args:
        whole: `(num, ...)`, or None for zeros; not changed.
        part: `(len(rows), ...)`.
        rows: which rows of the result `part` becomes.
        num: rows of the result.

    Example:
        >>> put_rows(None, torch.ones(1, 2), [1], num=2)
        tensor([[0., 0.],
                [1., 1.]])
    """
    merged = part.new_zeros((num, *part.shape[1:])) if whole is None else whole.detach().clone()
    merged[list(rows)] = part.detach()
    if part.requires_grad:
        merged.requires_grad_()
        old = None if whole is None else whole.grad
        if old is not None or part.grad is not None:
            merged.grad = torch.zeros_like(merged) if old is None else old.clone()
            merged.grad[list(rows)] = 0.0 if part.grad is None else part.grad
    return merged


def copy_of(value: Tensor) -> Tensor:
    """Return a copy of a state tensor that learns if it does; without its gradient."""
    return value.detach().clone().requires_grad_(value.requires_grad)


def gradient_of(leaf: Tensor, scale: float | Tensor) -> Tensor:
    """Return the gradient of a leaf, free of the loss scale and averaged over the processes of a data-parallel job.

    Args:
        leaf: a tensor on which backward has run; without a gradient, zeros are returned.
        scale: what the loss was multiplied by (`Context.leaf_scale`).

    Example:
        >>> leaf = torch.ones(2, requires_grad=True)
        >>> (4 * leaf.sum()).backward()
        >>> gradient_of(leaf, scale=4.0)
        tensor([1., 1.])
    """
    grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / scale
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        grad = grad / dist.get_world_size()
    return grad.detach()


def adam_state(leaf: Tensor) -> dict[str, Tensor]:
    """Return what `adam_step` remembers of a leaf `(n, ...)` before its first step; each pair counts its own steps.

    Example:
        >>> sorted(adam_state(torch.ones(2, 3)))
        ['mean', 'steps', 'variance']
    """
    zeros = torch.zeros_like(leaf.detach())
    steps = torch.zeros(len(leaf), dtype=torch.int64, device=leaf.device)
    return {"mean": zeros, "variance": zeros.clone(), "steps": steps}


def adam_step(
    leaf: Tensor, grad: Tensor, tensors: dict[str, Tensor], rate: float | Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take one step of Adam (0.9, 0.999, 1e-8) on a leaf, as PyTorch's own does; without decay.

    Args:
        leaf: `(n, ...)`; not changed.
        grad: its gradient, free of the loss scale (`gradient_of`).
        tensors: a dict that holds what `adam_state` returned, or the last step did.
        rate: learning rate, or one per pair as in `Context.lr`.

    Returns:
        The leaf after the step, detached, and what to remember.

    Example:
        >>> leaf = torch.ones(1, 2)
        >>> adam_step(leaf, torch.tensor([[3.0, -3.0]]), adam_state(leaf), rate=0.5)[0]
        tensor([[0.5000, 1.5000]])
    """
    whole = (-1,) + (1,) * (leaf.dim() - 1)
    steps = tensors["steps"] + 1
    mean = tensors["mean"].lerp(grad, 1.0 - _BETA_1)
    variance = tensors["variance"] * _BETA_2 + (1.0 - _BETA_2) * grad.square()
    counted = steps.to(leaf.dtype).view(whole)
    size = rate.view(whole).to(leaf) if isinstance(rate, Tensor) else rate
    length = (variance / (1.0 - _BETA_2**counted)).sqrt() + _EPSILON
    stepped = leaf.detach() - size * (mean / (1.0 - _BETA_1**counted)) / length
    return stepped, {"mean": mean, "variance": variance, "steps": steps}


class Scalers:
    """The gradient scalers of this process, found once: they unscale an optimizer's parameters, and no leaf."""

    def __init__(self) -> None:
        self._found: list[Any] | None = None

    def scale_of(self, optimizer: Optimizer) -> float | Tensor:
        """Return what the loss of this optimizer's step was multiplied by; 1 without a scaler.

        Walks the garbage collector's objects at the first call, which takes tens of milliseconds.
        """
        if self._found is None:
            self._found = [weakref.ref(o) for o in gc.get_objects() if issubclass(type(o), torch.amp.GradScaler)]
        for scaler in (reference() for reference in self._found):
            # The scaler knows an optimizer from unscaling it, or beginning its step, until its own update.
            if scaler is not None and scaler.is_enabled() and id(optimizer) in scaler._per_optimizer_states:
                return float(scaler.get_scale())
        scale = getattr(optimizer, "grad_scale", None)
        return 1.0 if scale is None else scale
