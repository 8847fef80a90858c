"""The ClientApp: what a node of Flower does when the server asks it to train, or who it is."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from rmlora.config_source import parse_yaml, resolve
from rmlora.errors import StateError
from rmlora.federated.averaging import Dropped, Update
from rmlora.federated.exchange import answer, reason_of
from rmlora.federated.flower.records import Order, pack_reply, unpack_order
from rmlora.federated.settings import complete_federated
from rmlora.federated.site import Site, make_site
from rmlora.run.trainer import quieten

PARTITION, EXAMPLES = "partition-id", "examples"
"""Entries of a node's configuration: which client it is (Flower's simulation says so itself), and `examples="own"`
where its training file is its own and holds nobody else's."""

__all__ = ["app"]  # noqa: F822


def __getattr__(name: str) -> Any:
    """Make the ClientApp when Flower asks for it: this module is read without Flower, too."""
    if name != "app":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from flwr.clientapp import ClientApp

    made = ClientApp()
    made.query()(who)
    made.train()(train)
    return made


def who(message: Any, context: Any) -> Any:
    """Say which client this node is."""
    from flwr.app import ConfigRecord, Message, RecordDict

    client = ConfigRecord({"client": _client_of(context)})
    return Message(RecordDict({"who": client}), reply_to=message)


def train(message: Any, context: Any) -> Any:
    """Train a round, and send what it trained, or why that failed."""
    from flwr.app import Message

    return Message(pack_reply(_train(message, context)), reply_to=message)


def _train(message: Any, context: Any) -> Update | Dropped:
    client = _client_of(context)
    try:
        order, sent = unpack_order(message.content)
        if order.client != client:
            raise StateError(f"this node is client {client}, and was asked for client {order.client}")
        torch.set_num_threads(order.threads)
        return answer(_site(order, context.node_config.get(EXAMPLES) == "own"), order.number, client, sent)
    except Exception as error:
        return Dropped(client, reason_of(error))


def _site(order: Order, own: bool) -> Site:
    site, fingerprint = _load(order.config, own)
    if fingerprint != order.fingerprint:
        raise StateError("the model of this client does not begin as the server's: another model, version or data")
    return site


@lru_cache(maxsize=1)
def _load(config: str, own: bool) -> tuple[Site, str]:
    """Load model and examples once for all rounds that this process trains."""
    restore = quieten()
    try:
        where = "the server's order"
        site = make_site(complete_federated(resolve(parse_yaml(config, where), where)), own=own)
    finally:
        restore()
    return site, site.fingerprint()


def _client_of(context: Any) -> int:
    found: Any = context.node_config.get(PARTITION)
    return int(found) if isinstance(found, int | str) and str(found).isdigit() else -1
