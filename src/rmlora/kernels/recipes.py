"""Inputs that need not be kept for the backward, because what they were computed from is kept anyway.

The gradient of A needs the projection's input x. Where x is the output of a cheap function whose own backward keeps its
input, x is computed again from that: once more a GELU, a product of two tensors, or a layer norm, for a few thousandths
of a training step and none of the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor


def can_remake(x: Tensor) -> bool:
    """Whether `remake` can compute x again, from what autograd keeps of its making.

    Not where hooks pack what autograd saves (gradient checkpointing, offloading), nor under `torch.compile`, whose
    partitioner decides by itself what to keep.

    Example:
        >>> h = torch.ones(2, 3, requires_grad=True)
        >>> can_remake(F.gelu(h)), can_remake(h @ h.t())
        (True, False)
    """
    if torch.compiler.is_compiling() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return False
    recipe = None if x.grad_fn is None else _RECIPES.get(x.grad_fn.name())
    return recipe is not None and recipe.suffices(x.grad_fn)


def remake(node: Any) -> Tensor:
    """Compute the output of a node of autograd's graph again, up to rounding.

    Args:
        node: the `grad_fn` of a tensor of which `can_remake` is true, before its own backward has freed what it keeps.

    Returns:
        the tensor; a function of what the node was given, so that it can be differentiated.

    Example:
        >>> h = torch.linspace(-1, 1, 5, requires_grad=True)
        >>> x = F.gelu(h)
        >>> torch.equal(remake(x.grad_fn), x)
        True
    """
    return _RECIPES[node.name()].compute(node)


def _gelu(node: Any) -> Tensor:
    return F.gelu(node._saved_self, approximate=node._saved_approximate)


def _product(node: Any) -> Tensor:
    return node._saved_self * node._saved_other  # type: ignore[no-any-return]


def _layer_norm(node: Any) -> Tensor:
    h, mean, rstd = node._saved_input, node._saved_result1, node._saved_result2
    if torch.is_grad_enabled():  # to be differentiated again, statistics must depend on the input
        dims = tuple(range(-len(node._saved_normalized_shape), 0))
        spread = h.var(dims, correction=0, keepdim=True)
        mean, rstd = h.mean(dims, keepdim=True), torch.rsqrt(spread + (rstd**-2 - spread).detach())
    scaled = (h - mean) * rstd
    weight, bias = node._saved_weight, node._saved_bias
    if weight is None:
        return scaled  # type: ignore[no-any-return]
    return scaled * weight if bias is None else torch.addcmul(bias, scaled, weight)


def _keeps_both(node: Any) -> bool:
    # A product keeps a factor only where the other one needs a gradient.
    return node._saved_self is not None and node._saved_other is not None


def _is_precise(node: Any) -> bool:
    # In half precision the mean is kept rounded, from which the output comes out different.
    return node._saved_result1.dtype in (torch.float32, torch.float64) and node._saved_input.dtype == (
        node._saved_result1.dtype
    )


class _Recipe(NamedTuple):
    """How a node's output is computed again, and whether what the node keeps suffices for it."""

    compute: Callable[[Any], Tensor]
    suffices: Callable[[Any], bool]


_RECIPES = {
    "GeluBackward0": _Recipe(_gelu, lambda node: True),
    "MulBackward0": _Recipe(_product, _keeps_both),
    "NativeLayerNormBackward0": _Recipe(_layer_norm, _is_precise),
}
