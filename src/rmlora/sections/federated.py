"""Settings of training by many parties that keep their data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rmlora.sections.section import Section


class FederatedSettings(Section):
    """With scope=federated: how the training set is spread over clients, and what a round trains and averages."""

    clients: int = Field(default=10, ge=1, description="Parties that train, each on its own examples.")
    alpha: float = Field(
        default=0.5, gt=0, description="How even the classes lie: each is dealt to the clients by Dirichlet(alpha)."
    )
    split_seed: int | None = Field(default=None, ge=0, description="Of that deal; default: training.seed.")
    rounds: int = Field(default=20, ge=1, description="Times that clients train and the server averages.")
    fraction: float = Field(
        default=1.0, gt=0, le=1, description="Share of the clients that train in a round, drawn anew for each."
    )
    factors: Literal["alternate", "both", "b"] = Field(
        default="alternate", description="What a round trains and averages: A and B by turns (RoLoRA), both, B alone."
    )
    head: Literal["every", "b"] = Field(
        default="every", description="Rounds that train and average the head too: every one, or those of B."
    )
    local_epochs: int = Field(default=1, ge=1, description="Passes of a client over its examples in a round.")
    local_steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps of a client in a round, instead of local_epochs."
    )
    runtime: Literal["local", "simulation", "network"] = Field(
        default="local", description="Where clients run: in this process, or by Flower, simulated or over a network."
    )
    workers: int | None = Field(
        default=None, ge=1, description="Clients side by side in a simulation; default: as there are cores."
    )
    timeout: float = Field(
        default=600.0, gt=0, description="Seconds a round waits for its clients, in simulation and network."
    )
    superlink: str = Field(
        default="127.0.0.1:8000",
        description="With runtime=network: host:port of Flower's SuperLink, or a connection of Flower's configuration.",
    )
