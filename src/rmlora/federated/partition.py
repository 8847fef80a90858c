"""Dealing the examples of a training set to clients, each class by a draw of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rmlora.errors import ConfigError


def deal_by_class(labels: Sequence[int], clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Deal every example to one client: of each class, shares drawn from Dirichlet(alpha).

    Args:
        labels: class ids, one per example.
        clients: how many, >= 1.
        alpha: > 0, the same for all clients. Large: every client has about the same share of each class; small: a
            class lies with few clients.
        seed: of NumPy's generator; the deal is a function of all arguments alone.

    Returns:
        For each client the positions of its examples, ascending; together every position once.

    Raises:
        ConfigError: a client gets nothing.

    Example:
        >>> dealt = deal_by_class([0, 1] * 10, clients=2, alpha=100.0, seed=0)
        >>> sorted(dealt[0] + dealt[1]) == list(range(20))
        True
    """
    drawn = np.random.default_rng(seed)
    truth = np.asarray(labels)
    dealt: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(truth):
        own = drawn.permutation(np.flatnonzero(truth == label))
        shares = drawn.dirichlet(np.full(clients, alpha))
        cuts = np.floor(np.cumsum(shares)[:-1] * len(own)).astype(int)
        for client, part in enumerate(np.split(own, cuts)):
            dealt[client].extend(part.tolist())
    empty = [client for client, own in enumerate(dealt) if not own]
    if empty:
        raise ConfigError(
            f"federated.alpha={alpha:g} gives no example to client {empty[0]}{_others(empty)} of {clients} "
            f"({len(truth)} examples, {len(np.unique(truth))} classes); use a larger alpha, fewer clients or another "
            "federated.split_seed"
        )
    return [sorted(own) for own in dealt]


def _others(empty: list[int]) -> str:
    return f" and {len(empty) - 1} more" if len(empty) > 1 else ""
