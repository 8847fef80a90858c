"""Settings of training by many parties that keep their data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rmlora.sections.section import Section


class FederatedSettings(Section):
    """With scope=federated: how the training set is spread over clients, and what is averaged."""

    clients: int = Field(default=10, ge=1, description="Parties that train, each on its own examples.")
    rounds: int = Field(default=20, ge=1, description="Times that clients train and the server averages.")
    factors: Literal["alternate", "both", "b"] = Field(
        default="alternate", description="What a round trains and averages: A and B by turns (RoLoRA), both, B alone."
    )
