"""Stacking: pairs of one shape, dtype and device read as two tensors, so that arithmetic never loops over modules."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch

from rmlora.errors import MethodError
from rmlora.pairs import Factors, Pair, Stack

_CPU_STACK_ENTRIES = 2**20


def stack_pairs(
    pairs: Iterable[Pair], partition: Callable[[Pair], Hashable] = lambda pair: None, seed: int = 0
) -> list[Stack]:
    """Group pairs of equal shape, dtype, device and partition, in order of first appearance.

    On a CPU a stack ends where its factors would leave the caches: larger copies cost several times as much an entry.
    """
    groups: dict[Hashable, list[Pair]] = {}
    for pair in pairs:
        A, B = pair.parameters
        groups.setdefault((pair.shapes, A.dtype, B.dtype, A.device, partition(pair)), []).append(pair)
    stacks = []
    for group in groups.values():
        A, B = group[0].parameters
        size = max(1, _CPU_STACK_ENTRIES // max(A.numel(), B.numel(), 1)) if A.device.type == "cpu" else len(group)
        for part in (tuple(group[i : i + size]) for i in range(0, len(group), size)):
            stacks.append(Stack(part, torch.tensor([pair.words for pair in part], device=A.device), seed))
    return stacks


def holding(stack: Stack, factors: Factors) -> Stack:
    """Return the same pairs as if they held these factors, whatever they hold now.

    Args:
        stack: the pairs.
        factors: as many, of their shapes.
    """
    filled = stack.renew()
    filled.__dict__.update(A=factors.A, B=factors.B)
    return filled


def refuse_used(stacks: Sequence[Stack], factors: Sequence[Factors], begins: str) -> None:
    """Raise where an adapter holds something that beginning with other factors would lose: B is not zero.

    Args:
        stacks: the pairs.
        factors: what they hold.
        begins: who begins with what, such as "BiLoRA begins with random factors of its own".

    Raises:
        MethodError: names the first such module.
    """
    for stack, held in zip(stacks, factors, strict=True):
        for name, is_used in zip(stack.names, held.B.flatten(1).any(dim=1).tolist(), strict=True):
            if is_used:
                raise MethodError(
                    f"{name}: B is not zero (trained already, or PiSSA and its like), and {begins}; attach to a fresh "
                    "adapter, and load a trained one afterwards"
                )
