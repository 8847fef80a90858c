"""The one thing a runtime does: ask clients to train in a round, and bring back what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rmlora.errors import RmloraError
from rmlora.federated.averaging import Dropped, State, Update
from rmlora.federated.client import train_client
from rmlora.federated.site import Site

Exchange = Callable[[int, Sequence[int], State], Iterable[Update | Dropped]]
"""From the number of a round, the clients that are asked and the tensors they are sent, to their replies."""


def exchange_here(site: Site) -> Exchange:
    """Return the exchange that trains one client after the other in this process: what the others are measured by.

    Args:
        site: where clients train; its model is the server's too, and every use of it begins by writing the state.
    """

    def exchange(number: int, clients: Sequence[int], sent: State) -> Iterable[Update | Dropped]:
        return (answer(site, number, client, sent) for client in clients)

    return exchange


def answer(site: Site, number: int, client: int, sent: State) -> Update | Dropped:
    """Train a client; whatever ends it drops it from the round, and says why."""
    try:
        return train_client(site, number, client, sent)
    except Exception as error:
        return Dropped(client, reason_of(error))


def reason_of(error: BaseException) -> str:
    """Put what ended a client into one line of at most 300 characters.

    Example:
        >>> reason_of(RuntimeError("shapes\\ndiffer"))
        'RuntimeError: shapes differ'
    """
    said = " ".join(str(error).split())
    return (said if isinstance(error, RmloraError) else f"{type(error).__name__}: {said}")[:300]
