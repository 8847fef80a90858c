"""Two runs compared bit by bit: the first difference of each kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NOT_KEPT = "not kept by the run, so not compared"


@dataclass(frozen=True)
class Finding:
    """What became of one file.

    Attributes:
        file: its name.
        what: "weights", "metrics" or "predictions".
        difference: the first one, in words; None if there is none.
        note: what was equal, or why nothing was compared.
        compared: whether there was anything to compare.
    """

    file: str
    what: str
    difference: str | None
    note: str = ""
    compared: bool = True


def compare_runs(before: Path, now: Path, weight_files: list[str]) -> list[Finding]:
    """Compare what a run left with what its replay left.

    Args:
        before: folder of the run.
        now: folder of its replay, finished.
        weight_files: names of the safetensors files with weights.

    Returns:
        A finding for each file either of them has; weights that a study did not keep are named as such.
    """
    kinds: list[tuple[str, str, Callable[[Path, Path], tuple[str | None, str]]]] = [
        *(("weights", name, compare_tensors) for name in weight_files),
        ("metrics", "metrics.jsonl", compare_rows),
        ("predictions", "predictions.safetensors", compare_tensors),
        ("predictions", "predictions_ensemble.safetensors", compare_tensors),
        ("predictions", "predictions.json", compare_text),
        ("predictions", "generated.jsonl", compare_text),
    ]
    found = []
    for what, name, compare in kinds:
        there = (before / name).is_file(), (now / name).is_file()
        if all(there):
            difference, note = compare(before / name, now / name)
            found.append(Finding(name, what, difference, note))
        elif there[1] and what == "weights":
            found.append(Finding(name, what, None, _NOT_KEPT, compared=False))
        elif any(there):
            found.append(Finding(name, what, "only the " + ("run" if there[0] else "replay") + " has it"))
    return found


def compare_tensors(before: Path, now: Path) -> tuple[str | None, str]:
    """Compare two safetensors files tensor by tensor, by their bits: nan equals the same nan, 0.0 differs from -0.0.

    Returns:
        The first difference or None, and how much was compared.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        a = load_file(before)
    except (SafetensorError, OSError):
        return "the run's file is damaged", ""
    b = load_file(now)
    names = sorted(a.keys() | b.keys())
    for name in names:
        if name not in a or name not in b:
            return f'only the {"run" if name in a else "replay"} has the tensor "{name}"', ""
        told = _first_difference(a[name], b[name])
        if told is not None:
            return f"{name}: {told}", ""
    return None, f"{len(names)} tensors"


def compare_rows(before: Path, now: Path) -> tuple[str | None, str]:
    """Compare two files of JSON lines; the first value that differs is named with its row and key."""
    a, b = _lines(before), _lines(now)
    for number, (was, current) in enumerate(zip(a, b, strict=False), start=1):
        if was != current:
            return f"row {number}: {_first_value(was, current)}", ""
    if len(a) != len(b):
        return f"the run has {len(a)} rows, the replay {len(b)}", ""
    return None, f"{len(a)} rows"


def compare_text(before: Path, now: Path) -> tuple[str | None, str]:
    """Compare two texts line by line."""
    a, b = _lines(before), _lines(now)
    if a == b:
        return None, f"{len(a)} lines"
    same = next((i for i, (was, current) in enumerate(zip(a, b, strict=False)) if was != current), min(len(a), len(b)))
    was, current = (f'"{lines[same][:80]}"' if same < len(lines) else "nothing" for lines in (a, b))
    return f"line {same + 1}: was {was}, is {current}", ""


def _first_difference(a: Tensor, b: Tensor) -> str | None:
    if a.shape != b.shape or a.dtype != b.dtype:
        was, now = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (a, b))
        return f"was {was}, is {now}"
    size = a.element_size()
    bits = [t.contiguous().flatten().view(torch.uint8).view(-1, size) for t in (a, b)]
    differs = (bits[0] != bits[1]).any(-1)
    count = int(differs.sum())
    if count == 0:
        return None
    first = int(differs.nonzero()[0])
    before, after = (t.flatten()[first].item() for t in (a, b))
    largest = float((a.double() - b.double()).abs().max())
    return (
        f"{count} of {a.numel()} values differ, by {largest:.3g} at most; the first, at {first}, "
        f"was {before!r}, is {after!r}"
    )


def _first_value(was: str, now: str) -> str:
    try:
        a, b = json.loads(was), json.loads(now)
    except ValueError:
        return "one of them is damaged"
    if isinstance(a, dict) and isinstance(b, dict):
        key = next((k for k in dict.fromkeys((*a, *b)) if not _same(a, b, k)), None)
        if key is not None:
            return f"{key} was {a.get(key)!r}, is {b.get(key)!r}"
    return "written differently, but with the same values"


def _same(a: dict[str, Any], b: dict[str, Any], key: str) -> bool:
    return key in a and key in b and repr(a[key]) == repr(b[key])


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
