"""Settings of learning one task after the other."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rmlora.sections.section import Section


class ContinualSettings(Section):
    """With scope=continual: the classes of one data set, learned a part at a time."""

    tasks: int = Field(default=10, ge=2, description="Parts the classes are split into.")
    strategy: Literal["sd-lora", "sequential", "joint"] = Field(
        default="sd-lora",
        description="Frozen directions with learned magnitudes; one adapter trained on and on; or all parts at once.",
    )
