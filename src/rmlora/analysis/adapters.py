"""Inspecting an adapter folder: what its updates dW = s B A look like, with no model built."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmlora.analysis.folder import AdapterFolder, open_adapter
from rmlora.analysis.gram import gram_columns, gram_rows, residual
from rmlora.analysis.orthogonality import orthogonality_floor, orthogonality_loss
from rmlora.analysis.report import AdapterReport, GramResidual, ModuleReport
from rmlora.analysis.spectra import (
    default_tolerance,
    effective_rank,
    numerical_rank,
    singular_values,
    stable_rank,
)
from rmlora.analysis.stored import StoredPair, read_pairs, unread_tensors
from rmlora.errors import AdapterError
from rmlora.pairs import Factors

# Pairs of one shape that are measured at once: enough to make each operation worth its call, few enough for memory.
_STACK = 64

_MOVED_BASE = ("pissa", "olora", "corda", "loftq", "orthogonal", "lora_ga")
_NOTES = {
    "use_dora": "DoRA rescales the merged weight; the numbers are those of B A before its magnitudes.",
    "use_qalora": "QA-LoRA pools the inputs of A; the numbers are those of B A, not of the full-width update.",
    "use_bdlora": "BD-LoRA keeps its factors block-diagonal; the numbers are those of the factors as stored.",
    "alora_invocation_tokens": "Activated LoRA: the update acts only after its invocation tokens.",
    "kasa_config": "KaSA truncates the base weights too; dW is relative to them. Its lora_diag is folded into A.",
}


def inspect_adapter(folder: str | Path) -> AdapterReport:
    """Measure every update of a LoRA-style PEFT adapter: ranks, Gram residuals, orthogonality.

    Reads the two files of the folder and nothing else: no base model, no PEFT model, no network. Computed in
    float64 by r x r algebra, stacked over modules of equal shape. The default tolerance of the rank is
    eps * max(d_out, d_in) with the eps of the stored precision (at least float32).

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.

    Returns:
        A report in the natural order of the module names (layer 2 before layer 10).

    Raises:
        AdapterError: the folder is missing, incomplete, damaged, not LoRA or AdaLoRA, holds NaN or infinity,
            or its two files disagree.

    Example:
        >>> import json, tempfile
        >>> from safetensors.torch import save_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
        >>> _ = (folder / "adapter_config.json").write_text(json.dumps(config))
        >>> factors = {"layer.0.q.lora_A.weight": torch.eye(2, 3), "layer.0.q.lora_B.weight": torch.eye(5, 2)}
        >>> save_file(factors, folder / "adapter_model.safetensors")
        >>> row, = inspect_adapter(folder).modules
        >>> row.name, row.scale, row.singular_values, row.rank, row.orthogonality_floor
        ('layer.0.q', 2.0, (2.0, 2.0), 2, 3)
    """
    adapter = open_adapter(folder)
    pairs = read_pairs(adapter)
    measured: dict[str, ModuleReport] = {}
    for stack in _stacks(pairs):
        measured |= {row.name: row for row in _measure(stack, adapter)}
    return AdapterReport(
        folder=str(folder),
        peft_type=adapter.peft_type,
        base_model=adapter.config.get("base_model_name_or_path"),
        modules=tuple(measured[pair.name] for pair in pairs),
        notes=tuple(_notes(adapter)),
    )


def _stacks(pairs: list[StoredPair]) -> Iterator[list[StoredPair]]:
    """Group the pairs whose factors have the same shapes."""
    by_shape: dict[tuple[Any, ...], list[StoredPair]] = defaultdict(list)
    for pair in pairs:
        by_shape[(pair.A.shape, pair.B.shape, pair.A.dtype)].append(pair)
    for group in by_shape.values():
        for start in range(0, len(group), _STACK):
            yield group[start : start + _STACK]


def _measure(stack: list[StoredPair], adapter: AdapterFolder) -> list[ModuleReport]:
    """Measure pairs of one shape together; the only loop over modules is the one that writes the rows."""
    factors = Factors(torch.stack([p.A for p in stack]).double(), torch.stack([p.B for p in stack]).double())
    _check_finite(factors, stack, adapter)
    (r, d_in), d_out, dtype = stack[0].A.shape, len(stack[0].B), stack[0].A.dtype
    sigma = singular_values(factors, torch.tensor([pair.scale for pair in stack], dtype=torch.float64))
    tolerance = default_tolerance(d_out, d_in, dtype)
    columns = zip(
        stack,
        sigma.tolist(),
        *(numerical_rank(sigma, at).tolist() for at in (tolerance, 1e-3, 1e-2)),
        stable_rank(sigma).tolist(),
        effective_rank(sigma).tolist(),
        _residuals(gram_rows(factors.A)),
        _residuals(gram_columns(factors.B)),
        orthogonality_loss(sigma, d_out).tolist(),
        strict=True,
    )
    return [
        ModuleReport(
            name=pair.name,
            r=r,
            d_in=d_in,
            d_out=d_out,
            scale=pair.scale,
            dtype=str(dtype).removeprefix("torch."),
            singular_values=tuple(values),
            tolerance=tolerance,
            rank=rank,
            rank_at_1e_3=rank_3,
            rank_at_1e_2=rank_2,
            stable_rank=stable,
            effective_rank=effective,
            A_residual=A_residual,
            B_residual=B_residual,
            orthogonality_loss=loss,
            orthogonality_floor=orthogonality_floor(r, d_out, d_in),
        )
        for pair, values, rank, rank_3, rank_2, stable, effective, A_residual, B_residual, loss in columns
    ]


def _residuals(gram: Tensor) -> list[GramResidual]:
    parts = residual(gram)
    return [GramResidual(*both) for both in zip(parts.norm.tolist(), parts.overlap.tolist(), strict=True)]


def _check_finite(factors: Factors, stack: list[StoredPair], adapter: AdapterFolder) -> None:
    finite = factors.A.isfinite().flatten(1).all(1) & factors.B.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        broken = [pair.name for pair, good in zip(stack, finite.tolist(), strict=True) if not good]
        raise AdapterError(
            f"{adapter.path}: {broken[0]} holds NaN or infinity ({len(broken)} of {len(stack)} modules of its shape); "
            "the training diverged, go back to an earlier checkpoint."
        )


def _notes(adapter: AdapterFolder) -> Iterator[str]:
    """Say what the numbers leave out."""
    for field, note in _NOTES.items():
        if adapter.config.get(field):
            yield note
    init = str(adapter.config.get("init_lora_weights")).lower()
    if init.startswith(_MOVED_BASE):
        yield f"init_lora_weights is {init}, which changes the base weights too; dW is relative to the changed base."
    if adapter.peft_type == "ADALORA":
        yield "AdaLoRA's values lora_E are folded into A, so the residual of A is that of lora_E * lora_A."
    for kind, count in sorted(unread_tensors(adapter).items()):
        yield f"Not measured: {count} tensor{'s' if count > 1 else ''} of kind {kind}."
