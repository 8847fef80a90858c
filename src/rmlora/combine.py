"""Putting transforms together: one after another, as one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rmlora.errors import MethodError
from rmlora.pairs import Factors, Kept, Stack
from rmlora.transform import Context, ForwardContext, Moments, State, Transform, mask_factors


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
        MethodError: more than one link computes the step itself, links average over different numbers of instances,
            or one is not a transform.

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
    numbers = sorted({link.instances for link in flat} - {1})
    if len(numbers) > 1:
        raise MethodError(f"links of one chain average over one number of instances, got {numbers}; give all the same")
    return Chain(tuple(flat))


def _both(first: Kept | None, second: Kept | None) -> Kept | None:
    if first is None or second is None:
        return first or second
    return Kept(first.A & second.A, first.B & second.B)
