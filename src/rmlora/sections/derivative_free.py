"""Settings of searching for an adapter by forward passes alone."""

from __future__ import annotations

from pydantic import Field

from rmlora.sections.section import Section


class DerivativeFreeSettings(Section):
    """With scope=derivative-free: a search by CMA-ES in a small space per block, projected into A and B."""

    dimension: int = Field(default=500, ge=2, description="Numbers searched for per block, shared by its factors.")
    population: int = Field(default=20, ge=4, description="Candidates per generation.")
    evaluations: int = Field(default=8000, ge=1, description="Candidates in all; one is a pass over `train`.")
    spread: float = Field(
        default=0.5, gt=0, description="Deviation of B's entries at a step of 1: how far candidates lie apart."
    )
    head_strength: float = Field(
        default=1.0, gt=0, description="Inverse regularisation C of the classifier, fitted once before the search."
    )
