"""Which adapted layers read the same input, so that it is read once for all: q, k and v; gate and up.

That is seen while the first step runs and used from the second on, and it travels with the optimizer's counters: sums
in another order round differently, and a resumed run has to equal one that never stopped.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from rmlora.pairs import Pair


class Siblings:
    """Layers that read one input, and what one of them computed for the others.

    Attributes:
        groups: for every pair that has some, itself and its siblings, in the model's order; None until known.
        number: the groups as a number whose bit i says that pairs i and i + 1 are siblings; 0 until known.
    """

    def __init__(self) -> None:
        self.groups: dict[Pair, tuple[Pair, ...]] | None = None
        self.number = 0
        self._runs: set[tuple[Pair, ...]] = set()
        self._run: tuple[Pair, ...] = ()
        self._input: tuple[weakref.ref[Tensor], int] | None = None
        self._ready: dict[Pair, tuple[weakref.ref[Tensor], int, Tensor]] = {}

    def observe(self, pair: Pair, x: Tensor) -> None:
        """Note who reads x, while groups are not known."""
        if self.groups is not None:
            return
        if self._input is not None and self._input[0]() is x and self._input[1] == x._version:
            self._run += (pair,)
            return
        self._runs.add(self._run)
        self._run, self._input = (pair,), (weakref.ref(x), x._version)

    def settle(self, pairs: Sequence[Pair]) -> None:
        """Take for siblings what read one input whenever it was called; done once, after the first step."""
        if self.groups is not None:
            return
        company: dict[Pair, set[frozenset[Pair]]] = {}
        for run in self._runs | {self._run}:
            for pair in run:
                company.setdefault(pair, set()).add(frozenset(run) if len(set(run)) == len(run) else frozenset())
        always = {pair: next(iter(found)) for pair, found in company.items() if len(found) == 1}
        joined = (b in always.get(a, ()) and always[a] == always.get(b) for a, b in pairwise(pairs))
        self.decode(sum(1 << i for i, bit in enumerate(joined) if bit), pairs)

    def decode(self, number: int, pairs: Sequence[Pair]) -> None:
        """Take the groups that a number says."""
        self.number = number
        self._runs, self._run, self._input, self.groups = set(), (), None, {}
        group: tuple[Pair, ...] = ()
        for i, pair in enumerate(pairs):
            group = (*group, pair) if i > 0 and number >> (i - 1) & 1 else (pair,)
            if len(group) > 1:
                self.groups |= dict.fromkeys(group, group)

    def of(self, pair: Pair) -> tuple[Pair, ...]:
        """Return the pair's siblings, without itself."""
        return tuple(other for other in (self.groups or {}).get(pair, ()) if other is not pair)

    def put(self, pair: Pair, x: Tensor, y: Tensor) -> None:
        """Keep what a sibling computed, until the pair's own layer is called with the same input."""
        self._ready[pair] = (weakref.ref(x), x._version, y)

    def take(self, pair: Pair, x: Tensor) -> Tensor | None:
        """Return what a sibling computed from this very input, once."""
        found = self._ready.pop(pair, None)
        return found[2] if found is not None and found[0]() is x and found[1] == x._version else None

    def drop(self) -> None:
        """Let go of what nobody took; it would keep a whole graph alive."""
        self._ready.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"groups": self.groups, "number": self.number, "_runs": set(), "_run": (), "_input": None, "_ready": {}}
