"""The part of an adapter that takes part in one optimizer step: pairs with a gradient, read and written as stacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rmlora.leaves import put_rows, take_rows
from rmlora.optimizers import Group
from rmlora.pairs import Factors, Kept, Stack
from rmlora.shards import add_each, copy_each, is_sharded, whole
from rmlora.transform import Context, Rows, State, mask_factors, spread_factors


@dataclass(frozen=True)
class Active:
    """Which rows of which stacks have a gradient.

    Attributes:
        rows: for each stack that takes part, its index and the rows of it.
        stacks: those rows as stacks.
        whole: whether that is every row of every stack, so that nothing has to be selected.
        sizes: pairs of every stack, of those that take no part too.
    """

    rows: tuple[tuple[int, tuple[int, ...]], ...]
    stacks: tuple[Stack, ...]
    whole: bool
    sizes: tuple[int, ...] = ()

    def take_state(self, state: State) -> State:
        """Select the rows of a state."""
        if self.whole:
            return state
        return tuple({key: take_rows(value, rows) for key, value in state[i].items()} for i, rows in self.rows)

    def put_state(self, state: State, part: State) -> State:
        """Return `state` with the rows replaced by `part`; new keys are zero elsewhere, what `part` lacks is gone."""
        if self.whole:
            return part
        merged = [dict(tensors) for tensors in state]
        for (i, rows), tensors in zip(self.rows, part, strict=True):
            merged[i] = {key: value for key, value in merged[i].items() if key in tensors}
            for key, value in tensors.items():
                merged[i][key] = put_rows(merged[i].get(key), value, rows, self.sizes[i])
        return tuple(merged)

    def take_kept(self, kept: Sequence[Kept | None]) -> tuple[Kept | None, ...]:
        """Select the rows of the masks."""
        return tuple(_rows_of(kept[i], rows) for i, rows in self.rows)

    def take_factors(self, factors: Sequence[Factors]) -> tuple[Factors, ...]:
        """Select the rows of factors read earlier for all pairs."""
        if self.whole:
            return tuple(factors)
        return tuple(Factors(factors[i].A[list(rows)], factors[i].B[list(rows)]) for i, rows in self.rows)

    def gradients(self) -> list[Factors]:
        """Return the gradients, stacked; zeros for a factor that has none."""
        return [
            Factors(
                torch.stack([_gradient(pair.parameters[0]) for pair in stack.pairs]),
                torch.stack([_gradient(pair.parameters[1]) for pair in stack.pairs]),
            )
            for stack in self.stacks
        ]

    def write_gradients(self, grads: Sequence[Factors]) -> None:
        """Write gradients back in place; a factor without a gradient stays without."""
        self._write(grads, lambda parameter: parameter.grad)

    def write_factors(self, factors: Sequence[Factors]) -> None:
        """Write the factors themselves, in place."""
        self._write(factors, lambda parameter: parameter.detach() if parameter.requires_grad else None)

    def add_to_gradients(self, added: Sequence[Factors], ctx: Context) -> None:
        """Add to the gradients in place; a factor without a gradient stays without.

        On a CPU only kept rows are touched, unless sharded; elsewhere one call for all is cheaper than one for each.
        """
        whole_stacks, spread = [], []
        for stack, factors, kept, rows in zip(self.stacks, added, ctx.kept, ctx.rows, strict=True):
            on_cpu = stack.keys.device.type == "cpu" and not is_sharded(stack.pairs[0].parameters[0])
            if rows is not None and on_cpu:
                _add_rows(stack, factors, rows)
            else:
                whole_stacks.append(stack)
                spread.append(mask_factors(spread_factors(factors, rows, stack.r), kept))
        targets, sources = _pair_up(whole_stacks, spread, lambda parameter: parameter.grad)
        add_each(targets, sources)

    def context(
        self,
        base: Context,
        groups: dict[int, Group],
        kept: Sequence[Kept | None],
        rows: Sequence[Rows | None],
    ) -> Context:
        """Complete a context with this step's learning rates and masks."""
        lr = tuple(_rates(stack, groups) for stack in self.stacks)
        own = tuple(_positions_of(rows[i], inside) for i, inside in self.rows)
        return replace(base, lr=lr, kept=self.take_kept(kept), rows=own)

    def _write(self, values: Sequence[Factors], target_of: Callable[[Tensor], Tensor | None]) -> None:
        copy_each(*_pair_up(self.stacks, values, target_of))


def _pair_up(
    stacks: Sequence[Stack], values: Sequence[Factors], target_of: Callable[[Tensor], Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """Line up what parameters are to get with where it goes, in their own shapes and dtypes."""
    targets, sources = [], []
    for stack, factors in zip(stacks, values, strict=True):
        for row, pair in enumerate(stack.pairs):
            for parameter, value in zip(pair.parameters, (factors.A[row], factors.B[row]), strict=True):
                target = target_of(parameter)
                if target is not None:
                    targets.append(target)
                    sources.append(value.to(target.dtype).view(target.shape))
    return targets, sources


def _add_rows(stack: Stack, part: Factors, rows: Rows) -> None:
    for i, pair in enumerate(stack.pairs):
        for side, (parameter, value) in enumerate(zip(pair.parameters, (part.A[i], part.B[i]), strict=True)):
            if parameter.grad is not None:
                shape = [*parameter.shape]
                shape[side] = rows[side].shape[1]
                parameter.grad.index_add_(side, rows[side][i], value.to(parameter.grad.dtype).view(shape))


def find_active(stacks: Sequence[Stack], groups: dict[int, Group]) -> Active:
    """Select the pairs that the optimizer holds and that have a gradient."""
    rows = []
    for i, stack in enumerate(stacks):
        inside = tuple(
            row
            for row, pair in enumerate(stack.pairs)
            if any(id(p) in groups and p.grad is not None for p in pair.parameters)
        )
        if inside:
            rows.append((i, inside))
    whole = sum(len(inside) for _, inside in rows) == sum(map(len, stacks))
    chosen = tuple(stacks[i].renew() if whole else stacks[i].take(inside) for i, inside in rows)
    return Active(tuple(rows), chosen, whole, tuple(map(len, stacks)))


def _gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    return whole(torch.zeros_like(parameter) if gradient is None else gradient).flatten(1)


def _rates(stack: Stack, groups: dict[int, Group]) -> tuple[float | Tensor, float | Tensor]:
    sides = zip(*(pair.parameters for pair in stack.pairs), strict=True)
    A, B = ([groups[id(p)]["lr"] if id(p) in groups else 0.0 for p in side] for side in sides)
    device = stack.keys.device
    return _one_or_many(A, device), _one_or_many(B, device)


def _one_or_many(rates: list[float | Tensor], device: torch.device) -> float | Tensor:
    # A rate kept on the device stays there: reading it would wait for the device.
    if all(rate is rates[0] for rate in rates):
        return rates[0]
    if not any(isinstance(rate, Tensor) for rate in rates) and len(set(rates)) == 1:
        return rates[0]
    return torch.stack([torch.as_tensor(rate, device=device) for rate in rates]).view(-1, 1, 1)


def _positions_of(positions: Rows | None, rows: tuple[int, ...]) -> Rows | None:
    if positions is None or len(rows) == len(positions[0]):
        return positions
    return positions[0][list(rows)], positions[1][list(rows)]


def _rows_of(kept: Kept | None, rows: tuple[int, ...]) -> Kept | None:
    if kept is None or len(rows) == kept.A.shape[0]:
        return kept
    return Kept(kept.A[list(rows)], kept.B[list(rows)], kept.count)
