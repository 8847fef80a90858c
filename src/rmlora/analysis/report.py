"""What an inspection found: plain numbers per module and their totals, ready to print, plot or write as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class GramResidual:
    """How far the directions of one factor are from orthonormal, `||G - I||_F^2`.

    Attributes:
        norm: the share of their lengths.
        overlap: the share of the angles between them; 0 means orthogonal.
    """

    norm: float
    overlap: float

    @property
    def total(self) -> float:
        """Both shares."""
        return self.norm + self.overlap


@dataclass(frozen=True)
class ModuleReport:
    """One adapted module.

    Attributes:
        name: its name in the base model.
        r: directions of the pair.
        d_in: columns of dW.
        d_out: rows of dW.
        scale: s in dW = s B A.
        dtype: what the factors are stored in.
        singular_values: those of dW, scale included, descending; min(r, d_in, d_out) of them.
        tolerance: what `rank` was counted at, relative to the largest singular value.
        rank: numerical rank at `tolerance`.
        rank_at_1e_3: numerical rank at a relative 1e-3.
        rank_at_1e_2: numerical rank at a relative 1e-2.
        stable_rank: ||dW||_F^2 / ||dW||_2^2; 0 for dW = 0.
        effective_rank: exponential of the spectrum's entropy; 0 for dW = 0.
        A_residual: residual of A A^T.
        B_residual: residual of B^T B.
        orthogonality_loss: ||dW dW^T - I||_F^2.
        orthogonality_floor: d_out - min(r, d_in, d_out), which no dW of r directions can go below.
    """

    name: str
    r: int
    d_in: int
    d_out: int
    scale: float
    dtype: str
    singular_values: tuple[float, ...]
    tolerance: float
    rank: int
    rank_at_1e_3: int
    rank_at_1e_2: int
    stable_rank: float
    effective_rank: float
    A_residual: GramResidual
    B_residual: GramResidual
    orthogonality_loss: float
    orthogonality_floor: int

    @property
    def orthogonality_excess(self) -> float:
        """The orthogonality loss of dW above its floor, from the singular values themselves."""
        return sum((value * value - 1) ** 2 for value in self.singular_values)

    @property
    def num_parameters(self) -> int:
        """Entries of A and B."""
        return self.r * (self.d_in + self.d_out)


@dataclass(frozen=True)
class AdapterReport:
    """A whole adapter.

    Attributes:
        folder: where it was read.
        peft_type: LORA or ADALORA.
        base_model: what the adapter says it was trained on, or None.
        modules: in natural order of their names.
        notes: what the numbers leave out, a sentence each.
    """

    folder: str
    peft_type: str
    base_model: str | None
    modules: tuple[ModuleReport, ...]
    notes: tuple[str, ...]

    def totals(self) -> dict[str, float | int]:
        """Sum what adds up over the modules, and average what does not.

        Returns:
            modules, parameters, directions (sum of r), the three summed ranks, the mean stable and effective
            rank, and the summed residuals and orthogonality excess.
        """
        rows = self.modules
        return {
            "modules": len(rows),
            "parameters": sum(row.num_parameters for row in rows),
            "directions": sum(row.r for row in rows),
            "rank": sum(row.rank for row in rows),
            "rank_at_1e_3": sum(row.rank_at_1e_3 for row in rows),
            "rank_at_1e_2": sum(row.rank_at_1e_2 for row in rows),
            "mean_stable_rank": fmean(row.stable_rank for row in rows),
            "mean_effective_rank": fmean(row.effective_rank for row in rows),
            "A_residual": sum(row.A_residual.total for row in rows),
            "B_residual": sum(row.B_residual.total for row in rows),
            "orthogonality_excess": sum(row.orthogonality_excess for row in rows),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON would hold it: dictionaries, lists, strings and numbers."""
        modules = [
            asdict(row)
            | {
                "singular_values": list(row.singular_values),
                "A_residual": asdict(row.A_residual) | {"total": row.A_residual.total},
                "B_residual": asdict(row.B_residual) | {"total": row.B_residual.total},
                "orthogonality_excess": row.orthogonality_excess,
                "num_parameters": row.num_parameters,
            }
            for row in self.modules
        ]
        return {
            "folder": self.folder,
            "peft_type": self.peft_type,
            "base_model": self.base_model,
            "modules": modules,
            "totals": self.totals(),
            "notes": list(self.notes),
        }
