"""Penalties of methods written once more as a loss: autograd then says what a step should have added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rmlora.doctor.steps import Step, Two
from rmlora.pairs import Pair
from rmlora.restrict import Only
from rmlora.schedules import value_at
from rmlora.transform import Transform
from rmlora.transforms import AddOrthogonality, AllocateBudget, AvoidSubspaces, MaskDirections
from rmlora.transforms.alternate_levels import AlternateLevels
from rmlora.transforms.avoid_subspaces import project_on_subspace


def expected_gradients(links: tuple[Transform, ...], pairs: tuple[Pair, ...], step: Step, seed: int) -> dict[str, Two]:
    """Return the gradient of all penalties of a method, each counted once, by autograd in float64.

    Args:
        links: of the method.
        pairs: of the adapter.
        step: its factors before the update are what the penalty is of.
        seed: given to `attach`.

    Returns:
        By the pair's name; zero in masked directions.
    """
    found: dict[str, Two] = {}
    for pair in pairs:
        A, B = (value.detach().double().flatten(1).requires_grad_() for value in step.before[pair.name])
        loss = (A.sum() + B.sum()) * 0
        for link in links:
            inner, acts = _inside(link, pair)
            if acts and type(inner) in LOSSES:
                loss = loss + _weight(inner, len(pairs), step.number) * LOSSES[type(inner)](inner, pair, A, B, seed)
        dA, dB = torch.autograd.grad(loss, (A, B))
        kept = step.kept.get(pair.name)
        if kept is not None:
            dA, dB = dA * kept.A.unsqueeze(1), dB * kept.B.unsqueeze(0)
        found[pair.name] = (dA, dB)
    return found


def penalties_of(links: tuple[Transform, ...], number: int) -> list[str]:
    """Name the links that add a penalty at a step."""
    inner = [_unwrapped(link) for link in links]
    return [type(link).__name__ for link in inner if type(link) in LOSSES and _weight(link, 1, number) > 0]


def rewriters_of(links: tuple[Transform, ...]) -> list[str]:
    """Name the links that change gradients otherwise, so that what a penalty added cannot be told apart."""
    inner = [_unwrapped(link) for link in links]
    known = (*LOSSES, MaskDirections)
    return [type(link).__name__ for link in inner if "grads" in link.hooks() and not isinstance(link, known)]


def _unwrapped(link: Transform) -> Transform:
    return link.inner if isinstance(link, Only) else link


def _inside(link: Transform, pair: Pair) -> tuple[Transform, bool]:
    import re

    if isinstance(link, Only):
        return link.inner, re.search(link.pattern, pair.name) is not None
    return link, True


def _weight(link: Any, num_pairs: int, number: int) -> float:
    weight = float(value_at(link.weight or 0.0, number))
    is_mean = isinstance(link, AllocateBudget) or getattr(link, "reduction", "sum") == "mean"
    return weight / (2 * num_pairs) if is_mean else weight


def _orthogonality(link: Any, pair: Pair, A: Tensor, B: Tensor, seed: int) -> Tensor:
    total = A.new_zeros(())
    for X in (A, B.T):
        residual = X @ X.T - torch.eye(len(X), dtype=X.dtype, device=X.device)
        if getattr(link, "gram", "whole") == "off_diagonal":
            residual = residual - torch.diag(residual.diagonal())
        total = total + (residual.norm() if _is_plain_norm(link) else residual.square().sum())
    return total


def _is_plain_norm(link: Any) -> bool:
    return isinstance(link, AllocateBudget) or getattr(link, "norm", "squared") == "frobenius"


def _subspaces(link: AvoidSubspaces, pair: Pair, A: Tensor, B: Tensor, seed: int) -> Tensor:
    keys = torch.tensor([pair.words], device=A.device)
    inside = (project_on_subspace(X[None], keys, link.dimensions, seed, side) for side, X in enumerate((A, B.T)))
    return sum((part.square().sum() for part in inside), A.new_zeros(())) / 2


LOSSES: Mapping[type, Callable[..., Tensor]] = {
    AddOrthogonality: _orthogonality,
    AllocateBudget: _orthogonality,
    AlternateLevels: _orthogonality,
    AvoidSubspaces: _subspaces,
}
"""The loss of every link that adds a penalty, without its weight."""
