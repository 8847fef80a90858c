"""Putting transforms together: one after another, as one."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rmlora.errors import MethodError
from rmlora.pairs import Factors, Kept, Stack
from rmlora.transform import (
    FORWARD_HOOKS,
    Context,
    ForwardContext,
    Moments,
    State,
    Transform,
    mask_factors,
    spread_factors,
)


@dataclass(frozen=True)
class Chain(Transform):
    """Transforms one after another, as one; made by `chain`.

    Attributes:
        links: the transforms, in the order they act.
    """

    links: tuple[Transform, ...] = ()

    @property
    def owns_update(self) -> bool:  # type: ignore[override]
        """Whether one link computes the step itself."""
        return any(link.owns_update for link in self.links)

    @property
    def samples(self) -> bool:
        """Whether any link does."""
        return any(link.samples for link in self.links)

    @property
    def multiplies_features(self) -> bool:
        """Whether every link that acts in the forward pass does."""
        return all(link.multiplies_features for link in self.links if link.hooks() & FORWARD_HOOKS)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """All that its links need beyond being attached."""
        return frozenset().union(*(link.needs for link in self.links))

    @property
    def adapts(self) -> str:  # type: ignore[override]
        """The PEFT type that a link asks for; links that ask for none go with either."""
        return next((link.adapts for link in self.links if link.adapts != Transform.adapts), Transform.adapts)

    @property
    def instances(self) -> int:
        """What the links ask for that ask for more than one."""
        return max([1, *(link.instances for link in self.links)])

    def suited_to(self, config: Any) -> Chain:
        """Suit every link."""
        return Chain(tuple(link.suited_to(config) for link in self.links))

    def hooks(self) -> frozenset[str]:
        """Hooks that at least one link uses."""
        return frozenset().union(*(link.hooks() for link in self.links))

    def partition(self, name: str) -> Hashable:
        """Separate what any link separates."""
        return tuple(link.partition(name) for link in self.links)

    def init(self, pairs: Sequence[Stack]) -> State:
        """Join the links' states; link i's keys begin with `i/`."""
        return self._join([link.init(pairs) for link in self.links], len(pairs))

    def begin(self, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Apply each link's `begin` in order."""
        for link, _ in self._using("begin", ()):
            factors = link.begin(pairs, factors)
        return factors

    def inputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Apply each link's `inputs` in order."""
        for link, part in self._using("inputs", (state,)):
            x = link.inputs(part[0], x, ctx)
        return x

    def ranks(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Apply each link's `ranks` in order."""
        for link, part in self._using("ranks", (state,)):
            x = link.ranks(part[0], x, ctx)
        return x

    def outputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Apply each link's `outputs` in order."""
        for link, part in self._using("outputs", (state,)):
            x = link.outputs(part[0], x, ctx)
        return x

    def blocks(self, state: dict[str, Tensor], factors: Factors, ctx: ForwardContext) -> Factors | None:
        """Put the links' blocks behind one another."""
        joined: Factors | None = None
        for link, part in self._using("blocks", (state,)):
            block = link.blocks(part[0], factors, ctx)
            if block is not None:
                joined = block if joined is None else joined.joined(block)
        return joined

    def keep(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Keep what every link keeps."""
        kept: tuple[Kept | None, ...] = tuple(None for _ in pairs)
        for link, part in self._using("keep", state):
            kept = tuple(map(_both, kept, link.keep(part, pairs, ctx)))
        return kept

    def learning(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Name what every link lets learn."""
        kept: tuple[Kept | None, ...] = tuple(None for _ in pairs)
        for index, link in enumerate(self.links):
            kept = tuple(map(_both, kept, link.learning(self._part(state, index), pairs, ctx)))
        return kept

    @property
    def learns_what_is_kept(self) -> bool:
        """Whether that is so of every link."""
        return all(link.learns_what_is_kept for link in self.links)

    def adds(self, state: State, pairs: Sequence[Stack], ctx: Context) -> Sequence[Factors]:
        """Sum what the links add."""
        first, *others = [link.adds(part, pairs, ctx) for link, part in self._using("adds", state)]
        for added in others:
            first = [Factors(a.A + b.A, a.B + b.B) for a, b in zip(first, added, strict=True)]
        return first

    @property
    def gathers(self) -> frozenset[str]:  # type: ignore[override]
        """All that its links gather, by the keys of the joined state."""
        return frozenset(f"{index}/{key}" for index, link in enumerate(self.links) for key in link.gathers)

    @property
    def masks_directions(self) -> bool:
        """Whether any link does."""
        return any(link.masks_directions for link in self.links)

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Apply each link's `adds` and `grads` in order; masked directions stay masked after every link."""
        parts = [self._part(state, index) for index in range(len(self.links))]
        for index, link in enumerate(self.links):
            if "adds" in link.hooks():
                grads = _add(grads, link.adds(parts[index], pairs, ctx), pairs, ctx)
            if "grads" in link.hooks():
                grads, parts[index] = link.grads(parts[index], pairs, grads, ctx)
                if ctx.kept:
                    grads = tuple(map(mask_factors, grads, ctx.kept))
        return grads, self._join(parts, len(pairs))

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Apply each link's `project` in order."""
        parts = [self._part(state, index) for index in range(len(self.links))]
        latest = moments[1]
        for index, link in enumerate(self.links):
            if "project" in link.hooks():
                both = (moments[0], latest)
                after, latest, parts[index] = link.project(parts[index], pairs, before, after, both, ctx)
        return after, latest, self._join(parts, len(pairs))

    def restarts(self, before: State, after: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Tensor | None, ...]:
        """Restart what any link restarts."""
        anew: tuple[Tensor | None, ...] = tuple(None for _ in pairs)
        for index, link in enumerate(self.links):
            more = link.restarts(self._part(before, index), self._part(after, index), pairs, ctx)
            anew = tuple(b if a is None else a if b is None else a | b for a, b in zip(anew, more, strict=True))
        return anew

    def report(self, state: State, pairs: Sequence[Stack]) -> Sequence[dict[str, Tensor]]:
        """Join what the links report."""
        reports = [link.report(self._part(state, index), pairs) for index, link in enumerate(self.links)]
        return tuple(
            {key: value for of_link in reports for key, value in of_link[i].items()} for i in range(len(pairs))
        )

    def freezes_head(self, step: int) -> bool:
        """Whether any link zeroes gradients outside the adapter."""
        return any(link.freezes_head(step) for link in self.links)

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Fold link after link, those with blocks last; each sees the pair's r directions, and blocks come behind."""
        blocks: list[list[Factors]] = [[] for _ in pairs]
        for link, part in sorted(self._using("fold", state), key=lambda used: "blocks" in used[0].hooks()):
            whole = link.fold(part, pairs, factors)
            for stack, folded, behind in zip(pairs, whole, blocks, strict=True):
                behind.append(Factors(folded.A[:, stack.r :], folded.B[:, :, stack.r :]))
            factors = [_first(stack.r, folded) for stack, folded in zip(pairs, whole, strict=True)]
        return [
            functools.reduce(Factors.joined, (b for b in behind if b.A.shape[1]), own)
            for own, behind in zip(factors, blocks, strict=True)
        ]

    def _using(self, hook: str, state: State) -> list[tuple[Transform, State]]:
        return [(link, self._part(state, i)) for i, link in enumerate(self.links) if hook in link.hooks()]

    def _part(self, state: State, index: int) -> State:
        prefix = f"{index}/"
        return tuple({k.removeprefix(prefix): v for k, v in d.items() if k.startswith(prefix)} for d in state)

    def _join(self, parts: Sequence[State], num_stacks: int) -> State:
        return tuple(
            {f"{index}/{key}": value for index, part in enumerate(parts) for key, value in part[stack].items()}
            for stack in range(num_stacks)
        )


def chain(*links: Transform) -> Chain:
    """Join transforms into one method, acting in the order written.

    Chains inside are flattened, so methods combine: `chain(r_lora(), gm_lora())` is `rm_lora()`.

    Args:
        links: transforms; none at all gives plain LoRA.

    Returns:
        A transform.

    Raises:
        MethodError: more than one link computes the step itself, one changes gradients after such a link has read
            them, one masks directions that another mixes, links average over different numbers of instances, or one
            is not a transform.

    Example:
        >>> import rmlora
        >>> len(chain(rmlora.AddOrthogonality(1e-3), chain(rmlora.MaskDirections(4))).links)
        2
    """
    flat: list[Transform] = []
    for link in links:
        if not isinstance(link, Transform):
            raise MethodError(f"chain takes transforms, got {type(link).__name__}: {link!r}")
        flat.extend(link.links if isinstance(link, Chain) else (link,))
    owners = [type(link).__name__ for link in flat if link.owns_update]
    if len(owners) > 1:
        raise MethodError(f"only one link may compute the step itself, got {' and '.join(owners)}")
    _refuse_unsuited(flat)
    numbers = sorted({link.instances for link in flat} - {1})
    if len(numbers) > 1:
        raise MethodError(f"links of one chain average over one number of instances, got {numbers}; give all the same")
    return Chain(tuple(flat))


def _add(grads: Sequence[Factors], added: Sequence[Factors], pairs: Sequence[Stack], ctx: Context) -> Sequence[Factors]:
    rows, kept = ctx.rows or (None,) * len(pairs), ctx.kept or (None,) * len(pairs)
    whole = [spread_factors(a, r, stack.r) for a, r, stack in zip(added, rows, pairs, strict=True)]
    masked = map(mask_factors, whole, kept)
    return [Factors(g.A + a.A.to(g.A.dtype), g.B + a.B.to(g.B.dtype)) for g, a in zip(grads, masked, strict=True)]


def _refuse_unsuited(links: Sequence[Transform]) -> None:
    """Raise where a link cannot do what it says beside one that computes the step or mixes directions."""
    mixing = next((link for link in links if link.mixes_directions), None)
    masking = next((link for link in links if link.masks_directions), None)
    if mixing and masking:
        raise MethodError(
            f"{type(mixing).__name__} moves all directions of a pair together ({mixing.mixes_directions}), so "
            f"{type(masking).__name__} cannot hold some of them still; use one of the two"
        )
    owner = next((i for i, link in enumerate(links) if link.owns_update), len(links))
    late = next((link for link in links[owner + 1 :] if link.hooks() & {"adds", "grads"}), None)
    if late:
        raise MethodError(
            f"{type(late).__name__} changes gradients after {type(links[owner]).__name__} has computed the step from "
            f"them; put it in front: chain({type(late).__name__}(...), {type(links[owner]).__name__}(...))"
        )


def _first(r: int, factors: Factors) -> Factors:
    if factors.A.shape[1] == r:
        return factors
    return Factors(factors.A[:, :r], factors.B[:, :, :r])


def _both(first: Kept | None, second: Kept | None) -> Kept | None:
    if first is None or second is None:
        return first or second
    return Kept(first.A & second.A, first.B & second.B)
