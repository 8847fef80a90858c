"""Settings of a mixture of trained adapters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rmlora.sections.section import Section


class MixtureSettings(Section):
    """With scope=mixture: trained adapters of one base, and how their outputs are put together."""

    experts: list[str] = Field(default=[], description="Folders of LoRA adapters of the model; they stay as they are.")
    combine: Literal["gates", "linear", "best"] = Field(
        default="gates",
        description="Learn a gate per block (MoLE); or merge with equal weights; or take the best single expert.",
    )
