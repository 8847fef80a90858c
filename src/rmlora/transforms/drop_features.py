"""LoRA Dropout: random features of A's input and B's output left out of the update, one mask per forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rmlora.draws import fork_keys, hash_scores
from rmlora.errors import AttachError, MethodError
from rmlora.pairs import Factors, Stack
from rmlora.transform import REPLICATED, ForwardContext, State, Transform

Rescale = Literal["none", "inverted"]

_STREAM = 0x64726F70
_SIDES = {"inputs": 0, "outputs": 1}


def drop_features(x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Multiply features by a mask shared by all rows of an instance.

    Args:
        x: `(instances * rows, ..., d, ...)` with d at `dim`; instances one after another along the first dimension.
        mask: `(instances, d)`.
        dim: where d is, negative.

    Returns:
        A new tensor of the shape of `x`.

    Example:
        >>> drop_features(torch.ones(4, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[1., 0.],
                [1., 0.],
                [0., 1.],
                [0., 1.]])
    """
    instances = mask.shape[0]
    if instances == 1:  # also for x without any row dimension
        shape = [1] * x.dim()
        shape[dim] = -1
        return x * mask.to(x.dtype).view(shape)
    stacked = x.reshape(instances, x.shape[0] // instances, *x.shape[1:])
    shape = [1] * stacked.dim()
    shape[0], shape[dim] = instances, -1
    return (stacked * mask.to(x.dtype).view(shape)).reshape(x.shape)


@dataclass(frozen=True)
class DropFeatures(Transform):
    """Link: in every forward pass leave random input features of A and output features of B out of the update.

    The forward pass is `y = W0 x + s m_B * (B (A (m_A * x)))`. The masks m_A `(d_in,)` and m_B `(d_out,)` are shared by
    the whole batch and all tokens, and each feature is left out with probability p on its own. So the step is taken
    with columns of A and rows of B set to zero, without writing masked matrices; directions are never left out. An
    entry of B A survives with probability `(1 - p)^2`.

    Masks are hashes of (seed, step, micro-batch, instance, module): the same on every process, when a checkpointed
    block is recomputed, and in a run that is resumed.

    In evaluation, merged and saved, a model stands for the mean of the masks: under "none" the update is
    multiplied by `(1 - p)^2`, and folding multiplies B by it; under "inverted" the mean is B A itself.

    Attributes:
        p: probability that a feature is left out, 0 <= p < 1; 0 skips the link.
        rescale: "none", masks of zeros and ones as the paper states them, or "inverted", each factor divided by 1 - p.
        instances: how many masks the loss of a batch is averaged over, >= 1. More than one needs every batch
            repeated: attach with `rmlora.attach_replicated`.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> DropFeatures(p=0.5).rescale
        'none'

    Source:
        LoRA Dropout, arXiv:2404.09610. Deviations: masks are hashes instead of the generator's; the paper does not say
        what one model without masks computes, for it evaluates by an ensemble.
    """

    p: float = 0.1
    rescale: Rescale = "none"
    instances: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.p < 1.0:
            raise MethodError(f"p={self.p}; the probability of leaving a feature out must be in [0, 1)")
        if self.rescale not in get_args(Rescale):
            raise MethodError(f'rescale="{self.rescale}" is not one of {list(get_args(Rescale))}')
        if isinstance(self.instances, bool) or not isinstance(self.instances, int) or self.instances < 1:
            raise MethodError(f"instances={self.instances}; it must be a whole number >= 1")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Batches repeated once per instance, if there are several."""
        return frozenset({REPLICATED}) if self.p > 0.0 and self.instances > 1 else frozenset()

    @property
    def samples(self) -> bool:
        """Yes, unless nothing is left out."""
        return self.p > 0.0

    @property
    def multiplies_features(self) -> bool:
        """Yes: a mask is what it does."""
        return True

    def hooks(self) -> frozenset[str]:
        """Nothing at p = 0; `fold` only where evaluation rescales."""
        if self.p == 0.0:
            return frozenset()
        return frozenset({"inputs", "outputs"} | ({"fold"} if self.rescale == "none" else set()))

    def inputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Leave features out of what enters A."""
        return self._drop(x, ctx, "inputs") if ctx.training or ctx.sampling else x

    def outputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Leave features out of what leaves B; in evaluation, weigh all by what survives on average."""
        if ctx.training or ctx.sampling:
            return self._drop(x, ctx, "outputs")
        return x if self.rescale == "inverted" else x * (1.0 - self.p) ** 2

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Multiply B by what survives on average."""
        if self.rescale == "inverted":
            return factors
        return [Factors(f.A, f.B * (1.0 - self.p) ** 2) for f in factors]

    def _drop(self, x: Tensor, ctx: ForwardContext, side: Literal["inputs", "outputs"]) -> Tensor:
        if x.shape[0] % ctx.instances:
            raise AttachError(
                f"{ctx.name} got an input of shape {tuple(x.shape)}, whose rows are not {ctx.instances} instances of "
                "the batch; compute one instance at a time: attach_replicated(..., chunk=1)"
            )
        mask = _draw_mask(ctx, x.shape[ctx.dim], self.p, _SIDES[side]).to(device=x.device, dtype=x.dtype)
        return drop_features(x, mask if self.rescale == "none" else mask / (1.0 - self.p), ctx.dim)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _draw_mask(ctx: ForwardContext, num: int, p: float, side: int) -> Tensor:
    """Boolean `(instances, num)`: what is kept. Not compiled: the step would be a constant of the graph."""
    keys = fork_keys(ctx.key, ctx.instances, ctx.instance)[0]
    scores = hash_scores(keys, num, ctx.seed, ctx.step, ctx.microbatch, _STREAM, side)
    return scores >= round(p * 2**32)
