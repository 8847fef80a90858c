"""Settings of searching for an adapter by forward passes alone."""

from __future__ import annotations

from pydantic import Field

from rmlora.sections.section import Section


class DerivativeFreeSettings(Section):
    """With scope=derivative-free: a search by CMA-ES in a small space that is projected into A and B."""

    dimension: int = Field(default=500, ge=4, description="Numbers searched for per layer, shared by its factors.")
    population: int = Field(default=20, ge=2, description="Candidates per generation.")
    evaluations: int = Field(default=8000, ge=1, description="Forward passes over the training set, in all.")
    sigma: float = Field(default=1.0, gt=0, description="Step size that the search begins with.")
