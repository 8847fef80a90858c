"""Settings of a mixture of trained adapters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rmlora.sections.section import Section


class MixtureSettings(Section):
    """With scope=mixture: trained adapters of one base, and how their outputs are put together."""

    experts: list[str] = Field(
        default=[], description="Folders of plain LoRA adapters of the model, two or more; they stay as they are."
    )
    combine: Literal["gates", "linear", "best"] = Field(
        default="gates",
        description="Learn a gate per block (MoLE); or merge with equal weights; or take the best single expert.",
    )
    temperature: float = Field(
        default=1.0, gt=0, description="With combine=gates: of the gates at the start; it is learnt."
    )
    balance: float = Field(
        default=0.1, ge=0, description="With combine=gates: weight of the loss that keeps experts in use; 0 = none."
    )
    holdout: float = Field(
        default=0.2, gt=0, lt=1, description="With combine=best: share of train on which the experts are compared."
    )
