"""Target `torch-export`: the merged model as a graph of `torch.export`, run."""

from __future__ import annotations

import warnings

import torch

from rmlora.verify.base_model import BaseModel
from rmlora.verify.certificate import Check, within
from rmlora.verify.exported import Merged, merge
from rmlora.verify.probe import allowed, distance
from rmlora.verify.subject import Subject

METHOD = "merged, exported by torch.export with any number of rows, the graph run and held against PEFT unmerged, fp32"
TOLERANCE = 1e-4


def check_torch_export(subject: Subject, base: BaseModel) -> list[Check]:
    """Export the merged model, run the graph on two batches, and compare.

    Raises:
        AdapterError: base and adapter do not fit, or the model cannot be probed.
    """
    merged = merge(subject, base)
    try:
        program = capture(merged)
        run = program.module()
        with torch.no_grad():
            found = run(*merged.inputs.values())
            other = run(*merged.other.values())
    except Exception as error:  # exporters fail in their own ways; each is a verdict about the model, not our error
        return [merged.complete, could_not("torch.export", error)]
    return [merged.complete, *compared(merged, found, other, TOLERANCE)]


def capture(merged: Merged) -> torch.export.ExportedProgram:
    """Export a merged model; the number of rows stays open."""
    rows = torch.export.Dim("rows", min=2, max=64)
    shapes = (tuple({0: rows} for _ in merged.inputs),)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about torch's own
        return torch.export.export(merged.model, tuple(merged.inputs.values()), dynamic_shapes=shapes)


def compared(merged: Merged, found: torch.Tensor, other: torch.Tensor, tolerance: float) -> list[Check]:
    """Make the checks of both batches."""
    limit = allowed(tolerance, merged.effect)
    told = f"{len(merged.expected)} rows; without the adapter outputs differ by {merged.effect:.1e}"
    return [
        within("outputs", distance(found, merged.expected), limit, told),
        within("outputs for more rows", distance(other, merged.expected_other), limit, f"{len(other)} rows"),
    ]


def could_not(what: str, error: Exception) -> Check:
    """Make the failed check of an exporter that gave up."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    remedy = f"the base model itself does not go through {what}; report it there"
    return Check(what, False, detail=f"{type(error).__name__}: {reason}", remedy=remedy)
