"""Settings of learning one task after the other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rmlora.sections.section import Section


class ContinualSettings(Section):
    """With scope=continual: the classes of one data set, learned a part at a time, without what came before."""

    tasks: int = Field(default=10, ge=2, description="Parts the classes are split into, as even as can be.")
    classes: list[Annotated[list[str | int], Field(min_length=1)]] = Field(
        default=[],
        description="Names of the classes of each part instead, e.g. [[no, maybe], [yes]]; every class once.",
    )
    split_seed: int | None = Field(
        default=None, ge=0, description="Of the order of the classes; default: training.seed."
    )
    strategy: Literal["sd-lora", "sequential", "joint"] = Field(
        default="sd-lora",
        description="Frozen directions with learned magnitudes; one adapter trained on and on; or all parts at once.",
    )
    ranks: list[Annotated[int, Field(ge=1)]] = Field(
        default=[],
        description="sd-lora: directions of task 1, 2, ...; the last number holds for those behind; default: lora.r.",
    )
    start: float = Field(default=0.8, description="sd-lora: all magnitudes at the beginning of each task.")
    rate: float = Field(
        default=1.0, ge=0, description="sd-lora: learning rate of the magnitudes over that of the adapter; 0 = none."
    )
    drop_below: float | None = Field(
        default=None,
        ge=0,
        description="sd-lora: drop a new direction whose distance from what earlier ones make of it is at most this.",
    )
