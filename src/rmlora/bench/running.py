"""One benchmark from its settings to its rows: build, weigh, measure, summarise, write."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from rmlora.bench.base_model import build_base, make_batch
from rmlora.bench.contenders import Contender, adapted_modules, make_contender
from rmlora.bench.memory import watch_allocations
from rmlora.bench.operators import Operator, profile_step, shares
from rmlora.bench.present import show_operators, show_results
from rmlora.bench.ratios import hook_shares, ratios, seconds_by_round, spread
from rmlora.bench.settings import BenchSettings
from rmlora.bench.subjects import Subject
from rmlora.bench.timing import measure_rounds, warm_up
from rmlora.errors import ConfigError
from rmlora.files import check_writable, write_text
from rmlora.run.environment import describe_process, git_state

Row = dict[str, Any]


def run_bench(subjects: Sequence[Subject], settings: BenchSettings, output: Path, console: Console) -> list[Row]:
    """Measure every subject and write the rows; after each one the file is whole.

    Args:
        subjects: models by their geometry.
        settings: alike for all of them.
        output: file of the rows, one JSON object a line; replaced if it is there.
        console: where to show what comes out.

    Returns:
        The rows: a `step` per round and contender, a `memory` per contender, with `profile` an `operator` for each
        of a contender's, and a `summary` per subject.

    Raises:
        ConfigError: a model cannot be built, takes no step on such a batch, or does not fit into memory.
        RmloraError: `output` cannot be written.
    """
    if output.is_dir():
        raise ConfigError(f'--output: "{output}" is a folder; give a file for the rows')
    check_writable(output.parent)
    rows: list[Row] = []
    with _threads(settings.threads):
        for subject in subjects:
            with _room_for(subject):
                rows += bench_subject(subject, settings, console)
            write_text(output, "".join(json.dumps(row) + "\n" for row in rows))
    console.print(f"Rows: {output}", highlight=False, markup=False, soft_wrap=True)
    return rows


def bench_subject(subject: Subject, settings: BenchSettings, console: Console) -> list[Row]:
    """Measure one subject; return its rows, the summary last."""
    batch = make_batch(subject, settings)
    base = build_base(subject, settings)
    _settle(base, batch, settings, subject.name)
    contenders, memory = _make_all(base, batch, settings)
    with console.status(f"{subject.name}: {settings.rounds} rounds"):
        steps = [{"kind": "step", **row} for row in measure_rounds(contenders, batch, settings.rounds)]
    profiles = {one.name: profile_step(one, batch) for one in contenders} if settings.profile else {}
    summary = _summary(subject, settings, steps, memory)
    summary |= {"adapted": len(adapted_modules(base)), "batch_used": _sizes(batch)}
    summary |= {"operator_shares": {name: shares(found) for name, found in profiles.items()}} if profiles else {}
    show_results(summary, console)
    for name, found in profiles.items():
        show_operators(name, found, console)
    rows = [*steps, *memory, *_operator_rows(profiles), summary]
    return [{"model": subject.name, **row} for row in rows]


def _settle(base: torch.nn.Module, batch: dict[str, Tensor], settings: BenchSettings, name: str) -> None:
    """Take one step that nobody pays for: libraries allocate their workspaces in the first one."""
    try:
        make_contender("floor", base, settings).step(batch)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, ConfigError) or _is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f'model "{name}" takes no step on {", ".join(batch)}: {reason}; choose another') from error


@contextlib.contextmanager
def _room_for(subject: Subject) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise ConfigError(f'"{subject.name}" does not fit into memory; give a smaller --batch or --length') from error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)


def _make_all(
    base: torch.nn.Module, batch: dict[str, Tensor], settings: BenchSettings
) -> tuple[list[Contender], list[Row]]:
    """Make and warm up the contenders, counting the bytes that stay and the peak of one step more."""
    contenders, rows = [], []
    for name in settings.contenders:
        with watch_allocations(settings.device) as kept:
            contender = make_contender(name, base, settings)
            warm_up(contender, batch)
        with watch_allocations(settings.device) as stepped, contender.alone():
            contender.step(batch)
        if contender.spans is not None:
            contender.spans.take()
        contenders.append(contender)
        rows.append({"kind": "memory", "contender": name, "stays_bytes": kept.stays, "peak_bytes": stepped.peak})
    return contenders, _above_floor(rows)


def _above_floor(rows: list[Row]) -> list[Row]:
    floor = next((row for row in rows if row["contender"] == "floor"), None)
    if floor is None:
        return [row | {"excess_bytes": None} for row in rows]
    least = floor["stays_bytes"] + floor["peak_bytes"]
    return [row | {"excess_bytes": row["stays_bytes"] + row["peak_bytes"] - least} for row in rows]


def _summary(subject: Subject, settings: BenchSettings, steps: list[Row], memory: list[Row]) -> Row:
    measured = seconds_by_round(steps)
    seconds = {name: measured[name] for name in settings.contenders}
    keys = ("stays_bytes", "peak_bytes", "excess_bytes")
    return {
        "kind": "summary",
        "model": subject.name,
        "settings": asdict(settings),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratios": ratios(seconds),
        "hook_shares": hook_shares(steps),
        "memory": {row["contender"]: {key: row[key] for key in keys} for row in memory},
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        **describe_process(),
        "git": git_state(Path(__file__).parent),
    }


def _sizes(batch: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in batch.items()}


def _operator_rows(profiles: dict[str, list[Operator]]) -> Iterator[Row]:
    for name, operators in profiles.items():
        whole = sum(operator.self_s for operator in operators)
        for operator in operators:
            named = {"operator": operator.name, "calls": operator.calls, "sort": operator.sort}
            yield {
                "kind": "operator",
                "contender": name,
                **named,
                "self_s": operator.self_s,
                "share": operator.self_s / whole,
            }


@contextlib.contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
