"""Rounds over Flower's Grid: which node is which client, orders out, replies in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from rmlora.config_source import dump
from rmlora.errors import RmloraError
from rmlora.federated.averaging import Dropped, State, Update
from rmlora.federated.flower.records import Order, pack_order, unpack_reply
from rmlora.federated.site import Site

_POLL_SECONDS = 0.2
_WHO_SECONDS = 60.0


class GridExchange:
    """An exchange (see `rmlora.federated.exchange`) with the nodes of a Grid.

    Args:
        grid: as Flower gives it to a ServerApp.
        site: the server's.
        stopped: asked, while it waits, whether to wait no longer.
    """

    def __init__(self, grid: Any, site: Site, stopped: Callable[[], bool] = lambda: False) -> None:
        self.grid = grid
        self.stopped = stopped
        self.site = site
        self.fingerprint = site.fingerprint()
        self.timeout = site.config.federated.timeout
        self.clients: dict[int, int] = {}
        self.has_waited = False

    def __call__(self, number: int, clients: Sequence[int], sent: State) -> Iterable[Update | Dropped]:
        """Ask the clients that are connected, and wait for their replies for as long as the configuration says."""
        from flwr.app import Message, MessageType

        nodes = self._nodes(clients)
        missing = [Dropped(client, "it is not connected") for client in clients if client not in nodes]
        messages = [
            Message(pack_order(self._order(number, client), sent), node, MessageType.TRAIN, group_id=str(number))
            for client, node in nodes.items()
        ]
        replies = self._ask(messages, self.timeout)
        late = f"it did not answer within {self.timeout:g} s"
        return missing + [
            self._read(client, replies[node]) if node in replies else Dropped(client, late)
            for client, node in nodes.items()
        ]

    def _order(self, number: int, client: int) -> Order:
        return Order(dump(self.site.config), number, client, self.fingerprint, torch.get_num_threads())

    def _nodes(self, clients: Sequence[int]) -> dict[int, int]:
        """Return the node of each client that has one; the first time, wait until all are there."""
        begun = time.monotonic()
        while True:
            living = set(self.grid.get_node_ids())
            self.clients = {node: client for node, client in self.clients.items() if node in living}
            self._ask_who(sorted(living - self.clients.keys()))
            found = {self.clients[node]: node for node in sorted(self.clients, reverse=True)}
            lacking = [client for client in clients if client not in found]
            if not lacking or self.has_waited or time.monotonic() - begun > self.timeout:
                self.has_waited = True
                return {client: found[client] for client in clients if client in found}
            time.sleep(_POLL_SECONDS)

    def _ask_who(self, nodes: Sequence[int]) -> None:
        from flwr.app import Message, MessageType, RecordDict

        messages = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        for node, reply in self._ask(messages, min(self.timeout, _WHO_SECONDS)).items():
            told = reply.content.get("who") if reply.has_content() else None
            self.clients[node] = int(told["client"]) if told is not None else -1

    def _ask(self, messages: Sequence[Any], seconds: float) -> dict[int, Any]:
        """Send messages; return the replies by node."""
        if not messages:
            return {}
        waiting, begun = set(self.grid.push_messages(messages)), time.monotonic()
        replies: dict[int, Any] = {}
        while waiting and time.monotonic() - begun < seconds and not self.stopped():
            found = list(self.grid.pull_messages(waiting))
            replies |= {reply.metadata.src_node_id: reply for reply in found}
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            if waiting:
                time.sleep(_POLL_SECONDS)
        if self.stopped():
            raise RmloraError("interrupted while waiting for clients")
        return replies

    @staticmethod
    def _read(client: int, reply: Any) -> Update | Dropped:
        if reply.has_error():
            return Dropped(client, " ".join(f"Flower: {reply.error.reason}".split())[:300])
        return unpack_reply(client, reply.content)
