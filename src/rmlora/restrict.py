"""Letting a transform act on some modules and no others."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from rmlora.errors import MethodError
from rmlora.pairs import Factors, Kept, Stack
from rmlora.transform import Context, ForwardContext, Moments, Rows, State, Transform

T = TypeVar("T")


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
    def samples(self) -> bool:
        """Whether the inner transform does."""
        return self.inner.samples

    @property
    def multiplies_features(self) -> bool:
        """Whether the inner transform does."""
        return self.inner.multiplies_features

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """As the inner transform."""
        return self.inner.needs

    @property
    def adapts(self) -> str:  # type: ignore[override]
        """As the inner transform."""
        return self.inner.adapts

    @property
    def gathers(self) -> frozenset[str]:  # type: ignore[override]
        """As the inner transform."""
        return self.inner.gathers

    @property
    def masks_directions(self) -> bool:
        """As the inner transform."""
        return self.inner.masks_directions

    @property
    def instances(self) -> int:
        """As the inner transform."""
        return self.inner.instances

    def suited_to(self, config: Any) -> Only:
        """Suit the inner transform."""
        return replace(self, inner=self.inner.suited_to(config))

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

    def begin(self, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Begin the matching stacks."""
        i = self._inside(pairs)
        return self._spread(pairs, self.inner.begin(_at(pairs, i), _at(factors, i)), factors)

    def inputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Apply the inner transform where the name matches."""
        return self.inner.inputs(state, x, ctx) if self._matches(ctx.name) else x

    def ranks(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Apply the inner transform where the name matches."""
        return self.inner.ranks(state, x, ctx) if self._matches(ctx.name) else x

    def outputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        """Apply the inner transform where the name matches."""
        return self.inner.outputs(state, x, ctx) if self._matches(ctx.name) else x

    def blocks(self, state: dict[str, Tensor], factors: Factors, ctx: ForwardContext) -> Factors | None:
        """Blocks of the inner transform where the name matches."""
        return self.inner.blocks(state, factors, ctx) if self._matches(ctx.name) else None

    def keep(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Mask the matching stacks; keep all of the others."""
        i = self._inside(pairs)
        kept = self.inner.keep(_at(state, i), _at(pairs, i), _context_at(ctx, i))
        return self._spread(pairs, kept, tuple(None for _ in pairs))

    def learning(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Ask the inner transform about the matching stacks; all of the others learn."""
        i = self._inside(pairs)
        kept = self.inner.learning(_at(state, i), _at(pairs, i), _context_at(ctx, i))
        return self._spread(pairs, kept, tuple(None for _ in pairs))

    def adds(self, state: State, pairs: Sequence[Stack], ctx: Context) -> Sequence[Factors]:
        """Add to the matching stacks, and nothing to the others."""
        i = self._inside(pairs)
        inner = self.inner.adds(_at(state, i), _at(pairs, i), _context_at(ctx, i))
        return self._spread(pairs, inner, [_nothing(stack, rows) for stack, rows in _with_rows(pairs, ctx)])

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

    def restarts(self, before: State, after: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Tensor | None, ...]:
        """Restart what the inner transform restarts of the matching stacks."""
        i = self._inside(pairs)
        anew = self.inner.restarts(_at(before, i), _at(after, i), _at(pairs, i), _context_at(ctx, i))
        return self._spread(pairs, anew, tuple(None for _ in pairs))

    def report(self, state: State, pairs: Sequence[Stack]) -> Sequence[dict[str, Tensor]]:
        """Report of the matching stacks."""
        i = self._inside(pairs)
        nothing: tuple[dict[str, Tensor], ...] = tuple({} for _ in pairs)
        return self._spread(pairs, self.inner.report(_at(state, i), _at(pairs, i)), nothing)

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
    return replace(ctx, lr=_given(ctx.lr, indices), kept=_given(ctx.kept, indices), rows=_given(ctx.rows, indices))


def _given(values: Sequence[T], indices: Sequence[int]) -> tuple[T, ...]:
    return _at(values, indices) if values else ()


def _with_rows(pairs: Sequence[Stack], ctx: Context) -> list[tuple[Stack, Rows | None]]:
    return list(zip(pairs, ctx.rows or (None,) * len(pairs), strict=True))


def _nothing(stack: Stack, rows: Rows | None) -> Factors:
    num_A, num_B = (stack.r, stack.r) if rows is None else (rows[0].shape[1], rows[1].shape[1])
    A, B = stack.A, stack.B
    return Factors(A.new_zeros(len(A), num_A, A.shape[2]), B.new_zeros(len(B), B.shape[1], num_B))
