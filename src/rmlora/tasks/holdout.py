"""Carving a held-out part from the training examples, so that choosing between runs needs no reported split."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Hashable, Sequence

from rmlora.errors import DataError


def carve(groups: Sequence[Hashable], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide examples into a part to learn from and a part held out, group by group.

    Each group gives its share, whole examples by largest remainder, so the held-out part has `round(fraction * n)`
    examples in the proportions of the whole; no group gives all it has.

    Args:
        groups: of each example; its class, or one value for all where there are no classes.
        fraction: share held out, above 0 and below 1.
        seed: which examples of a group are taken.

    Returns:
        Indices of the two parts, each ascending; together they are all.

    Raises:
        DataError: there are too few examples to hold any out.

    Example:
        >>> kept, held = carve([0, 0, 0, 0, 1, 1], 0.5, seed=0)
        >>> sorted(kept + held), [[0, 0, 0, 0, 1, 1][i] for i in held]
        ([0, 1, 2, 3, 4, 5], [0, 0, 1])
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    wanted = {group: fraction * len(own) for group, own in members.items()}
    taken = {group: min(math.floor(share), len(members[group]) - 1) for group, share in wanted.items()}
    missing = round(fraction * len(groups)) - sum(taken.values())
    for group in sorted(wanted, key=lambda g: taken[g] - wanted[g]):
        if missing > 0 and taken[group] < len(members[group]) - 1:
            taken[group] += 1
            missing -= 1
    rng = random.Random(seed)
    held = sorted(index for group, own in members.items() for index in rng.sample(own, taken[group]))
    if not held:
        raise DataError(f"data.holdout={fraction} of {len(groups)} training examples leaves none to evaluate on")
    gone = set(held)
    return [index for index in range(len(groups)) if index not in gone], held
