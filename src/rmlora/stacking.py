"""Stacking: pairs of one shape, dtype and device read as two tensors, so that arithmetic never loops over modules."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import torch

from rmlora.pairs import Pair, Stack

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
