"""What the server does with what clients send: refuse what cannot be averaged, average the rest, say what it lost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
"""Trained tensors by their names in the model."""


@dataclass(frozen=True)
class Update:
    """What a client sends after a round.

    Attributes:
        client: its number, from 0.
        examples: it trained on, its weight in the average.
        steps: optimizer steps it took.
        loss: mean over its examples.
        state: the tensors the round trained, as they have become.
    """

    client: int
    examples: int
    steps: int
    loss: float
    state: State


@dataclass(frozen=True)
class Dropped:
    """A client that is left out of a round.

    Attributes:
        client: its number.
        why: in words.
    """

    client: int
    why: str


def sift(
    replies: Iterable[Update | Dropped], clients: Sequence[int], expected: Mapping[str, Tensor]
) -> tuple[list[Update], list[Dropped]]:
    """Separate what can be averaged from what cannot, both by the client's number, whatever came first.

    Args:
        replies: of the round; a client that says nothing, and one that was not asked, is dropped.
        clients: that were asked.
        expected: tensors of the names and shapes that each has to send.

    Example:
        >>> zero = {"w": torch.zeros(2)}
        >>> kept, dropped = sift([Update(0, 3, 1, 0.5, zero), Update(1, 3, 1, 0.5, {"w": torch.ones(3)})], [0, 1], zero)
        >>> [update.client for update in kept], dropped[0].why
        ([0], 'w has the shape (3,) instead of (2,)')
    """
    first: dict[int, Update | Dropped] = {}
    for reply in replies:
        first.setdefault(reply.client, reply)
    kept, dropped = [], []
    for client in clients:
        reply = first.get(client, Dropped(client, "it did not answer"))
        why = reply.why if isinstance(reply, Dropped) else fault_of(reply, expected)
        if why is None and isinstance(reply, Update):
            kept.append(reply)
        else:
            dropped.append(Dropped(client, why or ""))
    return kept, dropped


def fault_of(update: Update, expected: Mapping[str, Tensor]) -> str | None:
    """Say why an update cannot be averaged; None if it can."""
    if not math.isfinite(update.loss):
        return f"its loss is {update.loss}"
    if update.examples < 1:
        return f"it trained on {update.examples} examples"
    missing = sorted(expected.keys() - update.state.keys())
    if missing:
        return f"it did not send {missing[0]}"
    extra = sorted(update.state.keys() - expected.keys())
    if extra:
        return f"it sent {extra[0]}, which this round does not train"
    for name, tensor in update.state.items():
        if tensor.shape != expected[name].shape:
            return f"{name} has the shape {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        if not torch.isfinite(tensor).all():
            return f"{name} holds nan or infinity"
    return None


def average(updates: Sequence[Update]) -> State:
    """Return the mean of what clients sent, each weighted by its examples; sums are taken in float64.

    Args:
        updates: at least one, from `sift`.

    Returns:
        Tensors of the updates' dtypes.

    Example:
        >>> low, high = ({"w": torch.tensor([x])} for x in (0.0, 4.0))
        >>> average([Update(0, 3, 1, 0.0, low), Update(1, 1, 1, 0.0, high)])
        {'w': tensor([1.])}
    """
    shares = shares_of(updates)
    mean = {}
    for name, like in updates[0].state.items():
        total = torch.zeros(like.shape, dtype=torch.float64)
        for update, share in zip(updates, shares, strict=True):
            total += share * update.state[name].double()
        mean[name] = total.to(like.dtype)
    return mean


def shares_of(updates: Sequence[Update]) -> list[float]:
    """Return the weight of each client: its examples over those of all."""
    total = sum(update.examples for update in updates)
    return [update.examples / total for update in updates]


def averaging_error(before: State, updates: Sequence[Update], after: State) -> tuple[float, float]:
    """Measure how far the product of the averages is from the average of the products, over all pairs together.

    `||mean_i(B_i A_i) - B A||_F` with A and B as they are averaged. It is 0 up to rounding where all clients hold one
    of the factors in common. The difference is a product of matrices with few columns and rows, and is measured
    by their QR factors, in float64, so no d_out x d_in matrix is made.

    Args:
        before: every factor as the round began with it; those nobody trained are taken from here.
        updates: of the clients that were averaged.
        after: every factor as the round leaves it.

    Returns:
        The error, and its ratio to `||mean_i(B_i A_i)||_F` (0 where that is 0). Both without the adapter's scale.

    Example:
        >>> before = {"q.lora_A.w": torch.eye(2), "q.lora_B.w": torch.zeros(2, 2)}
        >>> sent = [{"q.lora_B.w": torch.eye(2)}, {"q.lora_B.w": 3 * torch.eye(2)}]
        >>> updates = [Update(i, 5, 1, 0.0, state) for i, state in enumerate(sent)]
        >>> averaging_error(before, updates, before | average(updates))[1] < 1e-12
        True
    """
    shares = shares_of(updates)
    lost = whole = 0.0
    for name in before:
        if ".lora_A." not in name:
            continue
        other = name.replace(".lora_A.", ".lora_B.")
        rows = [update.state.get(name, before[name]).double().flatten(1) for update in updates]
        columns = [
            share * update.state.get(other, before[other]).double().flatten(1)
            for update, share in zip(updates, shares, strict=True)
        ]
        whole += _norm(columns, rows) ** 2
        columns.append(-after[other].double().flatten(1))
        lost += _norm(columns, [*rows, after[name].double().flatten(1)]) ** 2
    return lost**0.5, (lost / whole) ** 0.5 if whole else 0.0


def _norm(columns: Sequence[Tensor], rows: Sequence[Tensor]) -> float:
    """`||sum_i C_i R_i||_F` of tall C_i and wide R_i."""
    left, right = torch.cat(list(columns), dim=1), torch.cat(list(rows))
    small = [torch.linalg.qr(tall, mode="r").R for tall in (left, right.mT)]
    return float(torch.linalg.matrix_norm(small[0] @ small[1].mT))


def num_bytes(state: Mapping[str, Tensor]) -> int:
    """Count the bytes of tensors, without what wraps them on the way.

    Example:
        >>> num_bytes({"w": torch.zeros(3)})
        12
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
