"""Putting transforms together: one after another (`chain`), or on some modules only (`only`)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from rmlora.errors import MethodError
from rmlora.pairs import Factors, Kept, Stack
from rmlora.transform import Context, ForwardContext, Moments, State, Transform, mask_factors

T = TypeVar("T")


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
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """All that its links need beyond being attached."""
        return frozenset().union(*(link.needs for link in self.links))

    def hooks(self) -> frozenset[str]:
        """Hooks that at least one link uses."""
        return frozenset().union(*(link.hooks() for link in self.links))

    def partition(self, name: str) -> Hashable:
        """Separate what any link separates."""
        return tuple(link.partition(name) for link in self.links)

    def init(self, pairs: Sequence[Stack]) -> State:
        """Join the links' states; link i's keys begin with `i/`."""
        return self._join([link.init(pairs) for link in self.links], len(pairs))

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

    def keep(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Keep what every link keeps."""
        kept: tuple[Kept | None, ...] = tuple(None for _ in pairs)
        for link, part in self._using("keep", state):
            kept = tuple(map(_both, kept, link.keep(part, pairs, ctx)))
        return kept

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Apply each link's `grads` in order; masked directions stay masked after every link."""
        parts = [self._part(state, index) for index in range(len(self.links))]
        for index, link in enumerate(self.links):
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

    def freezes_head(self, step: int) -> bool:
        """Whether any link zeroes gradients outside the adapter."""
        return any(link.freezes_head(step) for link in self.links)

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Fold link after link."""
        for link, part in self._using("fold", state):
            factors = link.fold(part, pairs, factors)
        return factors

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
        MethodError: more than one link computes the step itself, or one is not a transform.

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
    return Chain(tuple(flat))


@dataclass(frozen=True)
class Only(Transform):
    """A transform that acts on some pairs; made by `only`.

    Attributes:
        pattern: regular expression searched for in the pair's name.
        inner: the transform.
    """

    pattern: str
    inner: Transform

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """As the inner transform."""
        return self.inner.needs

    def hooks(self) -> frozenset[str]:
        """As the inner transform."""
        return self.inner.hooks()

    def partition(self, name: str) -> Hashable:
        """Separate the pairs it acts on from the others, so that it sees whole stacks."""
        return (self._matches(name), self.inner.partition(name))

    def init(self, pairs: Sequence[Stack]) -> State:
        """Initialise the inner transform on the matching stacks."""
        inside = self._inside(pairs)
        if not inside:
            num = sum(map(len, pairs))
            raise MethodError(f"only({self.pattern!r}) matches none of the {num} modules, such as {pairs[0].names[0]}")
        return self._spread(pairs, self.inner.init([pairs[i] for i in inside]), tuple({} for _ in pairs))

    def inputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Apply the inner transform where the name matches."""
        return self.inner.inputs(state, x, ctx) if self._matches(ctx.name) else x

    def ranks(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Apply the inner transform where the name matches."""
        return self.inner.ranks(state, x, ctx) if self._matches(ctx.name) else x

    def outputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Apply the inner transform where the name matches."""
        return self.inner.outputs(state, x, ctx) if self._matches(ctx.name) else x

    def keep(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Mask the matching stacks; keep all of the others."""
        i = self._inside(pairs)
        kept = self.inner.keep(_at(state, i), _at(pairs, i), _context_at(ctx, i))
        return self._spread(pairs, kept, tuple(None for _ in pairs))

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Change the gradients of the matching stacks."""
        i = self._inside(pairs)
        inner, part = self.inner.grads(_at(state, i), _at(pairs, i), _at(grads, i), _context_at(ctx, i))
        return self._spread(pairs, inner, grads), self._spread(pairs, part, state)

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Project the matching stacks."""
        i = self._inside(pairs)
        both = (_at(moments[0], i), _at(moments[1], i))
        moved, latest, part = self.inner.project(
            _at(state, i), _at(pairs, i), _at(before, i), _at(after, i), both, _context_at(ctx, i)
        )
        return (
            self._spread(pairs, moved, after),
            self._spread(pairs, latest, moments[1]),
            self._spread(pairs, part, state),
        )

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Fold the matching stacks."""
        i = self._inside(pairs)
        return self._spread(pairs, self.inner.fold(_at(state, i), _at(pairs, i), _at(factors, i)), factors)

    def _matches(self, name: str) -> bool:
        return re.search(self.pattern, name) is not None

    def _inside(self, pairs: Sequence[Stack]) -> list[int]:
        return [i for i, stack in enumerate(pairs) if self._matches(stack.names[0])]

    def _spread(self, pairs: Sequence[Stack], inner: Sequence[T], outer: Sequence[T]) -> tuple[T, ...]:
        spread = list(outer)
        for i, value in zip(self._inside(pairs), inner, strict=True):
            spread[i] = value
        return tuple(spread)


def only(pattern: str, transform: Transform) -> Only:
    """Let a transform act on the modules whose name matches, and on no others.

    Args:
        pattern: regular expression, searched for in names such as `bert.encoder.layer.0.attention.self.query`.
        transform: any transform that does not compute the step itself.

    Returns:
        A transform.

    Raises:
        MethodError: the pattern is not a regular expression, the transform computes the step itself, or (when
            attached) no module matches.

    Example:
        >>> import rmlora
        >>> only(r"attention", rmlora.MaskDirections(4)).pattern
        'attention'
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise MethodError(f"only() got {pattern!r}, which is not a regular expression: {error}") from None
    if transform.owns_update:
        raise MethodError("only() cannot hold a link that computes the step itself; attach it to all modules")
    return Only(pattern, transform)


def _at(values: Sequence[T], indices: Sequence[int]) -> tuple[T, ...]:
    return tuple(values[i] for i in indices)


def _context_at(ctx: Context, indices: Sequence[int]) -> Context:
    return replace(ctx, lr=_at(ctx.lr, indices) if ctx.lr else (), kept=_at(ctx.kept, indices) if ctx.kept else ())


def _both(first: Kept | None, second: Kept | None) -> Kept | None:
    if first is None or second is None:
        return first or second
    return Kept(first.A & second.A, first.B & second.B)
