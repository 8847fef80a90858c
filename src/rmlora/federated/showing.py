"""Saying who the clients are, before they train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

from rmlora.federated.averaging import num_bytes
from rmlora.federated.site import Site
from rmlora.federated.turns import Part, clients_of_round, parts_before, parts_of_round
from rmlora.run.progress import epoch_line
from rmlora.run.wording import say
from rmlora.sections import FederatedSettings

_FACTORS = {"alternate": "B and A by turns (RoLoRA)", "both": "A and B (FedAvg)", "b": "B alone"}


def show_clients(console: Console, site: Site) -> None:
    """Print in a few lines what is trained by whom."""
    config, counts = site.config, site.counts
    guess = f"; the commonest class scores {site.data.majority:.4f}" if site.data.majority else ""
    say(console, f"{config.method} on {config.model}: {site.method.summary}")
    say(console, f"{len(site.data.train)} examples to train on, {len(site.data.eval)} held out{guess}")
    for line in describe_clients(site):
        say(console, line)
    say(
        console, f"{counts.trainable:,} trainable parameters ({counts.share:.2%} of the model); output: {config.output}"
    )


def describe_clients(site: Site) -> list[str]:
    """Return lines: how the examples lie, what a round trains, what it sends."""
    told = site.config.federated
    sizes = sorted(len(own) for own in site.deal)
    kinds = sorted(len({site.data.train.labels[i] for i in own}) for own in site.deal)
    at_once = len(clients_of_round(told, site.config.training.seed, 1))
    work = f"{told.local_steps} steps" if told.local_steps else f"{told.local_epochs} passes"
    if told.local_steps == 1 or (told.local_steps is None and told.local_epochs == 1):
        work = work[:-1] if told.local_steps else "1 pass"
    head = "with the head" if told.head == "every" else "the head with B"
    return [
        f"{told.clients} clients by Dirichlet({told.alpha:g}): {sizes[0]} to {sizes[-1]} examples, "
        f"{kinds[0]} to {kinds[-1]} classes each",
        f"{told.rounds} rounds of {at_once} clients, {work} each; trained and averaged: "
        f"{_FACTORS[told.factors]}, {head}; runtime {told.runtime}",
        f"A client sends {_sizes(site, parts_of_round)} and is sent {_sizes(site, parts_before)}",
    ]


def _sizes(site: Site, parts: Callable[[FederatedSettings, int], frozenset[Part]]) -> str:
    """Say the bytes of two rounds that are typical: a late odd one and a late even one."""
    found = []
    for number in (3, 4):
        names = site.names(parts(site.config.federated, number))
        found.append(num_bytes({name: site.initial[name] for name in names}))
    told = [f"{size / 1e6:.2f} MB" for size in dict.fromkeys(found)]
    return " or ".join(told) + " a round"


def round_lines(row: dict[str, Any], site: Site) -> list[str]:
    """Return a line for each client that was dropped since the last row, and one for the round of this one."""
    lines = [f"round {one['round']}: client {one['client']} is dropped: {one['why']}" for one in row["dropped"]]
    return [*lines, epoch_line(row, site.metric, site.config.federated.rounds).replace("epoch", "round", 1)]
