"""What travels between server and clients, as Flower's records: an order, an update, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rmlora.federated.averaging import Dropped, State, Update

ORDER, TENSORS, NUMBERS, FAULT = "order", "tensors", "numbers", "fault"


@dataclass(frozen=True)
class Order:
    """What a client is told beside the tensors.

    Attributes:
        config: the run's configuration, as YAML.
        number: of the round.
        client: who is meant.
        fingerprint: of the server's model before training.
        threads: of torch at the server; with another number of them the last bits of a sum differ.
    """

    config: str
    number: int
    client: int
    fingerprint: str
    threads: int


def pack_order(order: Order, sent: State) -> Any:
    """Return a RecordDict with an order and tensors."""
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({ORDER: ConfigRecord(dict(vars(order))), TENSORS: pack_tensors(sent)})


def unpack_order(content: Any) -> tuple[Order, State]:
    """Return what `pack_order` packed."""
    return Order(**dict(content[ORDER])), unpack_tensors(content[TENSORS])


def pack_reply(reply: Update | Dropped) -> Any:
    """Return a RecordDict with an update, or with the reason why there is none."""
    from flwr.app import ConfigRecord, MetricRecord, RecordDict

    if isinstance(reply, Dropped):
        return RecordDict({FAULT: ConfigRecord({"why": reply.why})})
    numbers = MetricRecord({"examples": reply.examples, "steps": reply.steps, "loss": reply.loss})
    return RecordDict({NUMBERS: numbers, TENSORS: pack_tensors(reply.state)})


def unpack_reply(client: int, content: Any) -> Update | Dropped:
    """Return a client's reply; what cannot be read drops it."""
    try:
        if FAULT in content:
            return Dropped(client, str(content[FAULT]["why"]))
        numbers = content[NUMBERS]
        state = unpack_tensors(content[TENSORS])
        return Update(client, int(numbers["examples"]), int(numbers["steps"]), float(numbers["loss"]), state)
    except (KeyError, TypeError, ValueError) as error:
        return Dropped(client, f"its reply cannot be read ({type(error).__name__}: {error})")


def pack_tensors(state: State) -> Any:
    """Return tensors as an ArrayRecord: NumPy's own format, no pickle."""
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(tensor.contiguous().numpy()) for name, tensor in state.items()})


def unpack_tensors(record: Any) -> State:
    """Return the tensors of an ArrayRecord."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}
