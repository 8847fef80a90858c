"""Replaying a run: check what went in, train again, compare what came out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rmlora.config import RunConfig
from rmlora.errors import ConfigError, StateError
from rmlora.files import check_writable
from rmlora.replay.differences import Finding, compare_runs
from rmlora.replay.inputs import changed_inputs, other_surroundings
from rmlora.replay.record import Record, read_record
from rmlora.run.wording import say
from rmlora.scopes import run


def replay(
    path: Path,
    output: Path | None = None,
    *,
    anyway: bool = False,
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> list[Finding]:
    """Run a finished run again from its folder alone, and compare weights, metrics and predictions bit by bit.

    Args:
        path: folder of the run, of `rmlora train` or a cell of `rmlora compare`; it is not changed.
        output: where the replay is written, a new or empty folder; None writes to a temporary one and deletes it.
        anyway: replay although data or model are not what they were.
        trust_remote_code: run the Python code of the model or data set, if the run did.
        console: where to say what happens; None says nothing.

    Returns:
        What became of each file; bit-equal if no `difference` is there.

    Raises:
        ConfigError: there is no finished run, one of several processes, or one that ran foreign code.
        StateError: data or model have changed, and not `anyway`.
        RmloraError: as `rmlora.train.train`.
    """
    console = console or Console(quiet=True)
    record = read_record(path)
    _refuse(record, output, trust_remote_code)
    changed = changed_inputs(record)
    if changed and not anyway:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise StateError(f"{changed[0]}{more}; a replay would be of another run: --anyway replays all the same")
    for line in (*changed, *other_surroundings(record)):
        say(console, f"warning: {line}")
    with _place(output) as folder, _threads(record):
        result = _train(record.config, folder, console)
        names = [Path(name).name for name in {*_weights(record.result), *_weights(result)}]
        found = compare_runs(path, folder, sorted(names))
    for finding in found:
        say(console, _line(finding))
    say(console, _verdict(found))
    return found


def _refuse(record: Record, output: Path | None, trusted: bool) -> None:
    processes = (record.environment.get("machine") or {}).get("world_size", 1)
    if processes != 1:
        raise ConfigError(
            f'the run in "{record.folder.path}" was trained by {processes} processes; a replay is one, and would sum '
            "gradients in another order"
        )
    if record.config.trust_remote_code and not trusted:
        raise ConfigError(
            f'the run in "{record.folder.path}" ran Python code that came with its model or data; if you trust it, '
            "give --trust-remote-code"
        )
    if output is not None:
        if output.exists() and not output.is_dir():
            raise ConfigError(f'--output "{output}" is a file; give a folder that is new or empty')
        check_writable(output)
        if output.is_dir() and any(output.iterdir()):
            raise ConfigError(f'--output "{output}" is not empty; give a folder that is new or empty')


def _train(config: RunConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Train what was trained; trackers are left out, for they are told of the run already."""
    training = config.training.model_copy(update={"report_to": []})
    federated = config.federated.model_copy(update={"runtime": "local"})  # the same numbers without Flower
    config = config.model_copy(update={"output": str(folder), "training": training, "federated": federated})
    return run(config, console=console)


@contextmanager
def _place(output: Path | None) -> Iterator[Path]:
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="rmlora-replay-") as folder:
        yield Path(folder)


@contextmanager
def _threads(record: Record) -> Iterator[None]:
    """Compute with as many threads as the run did: sums may otherwise be added in another order."""
    told, here = (record.environment.get("machine") or {}).get("threads"), torch.get_num_threads()
    if isinstance(told, int) and told > 0:
        torch.set_num_threads(told)
    try:
        yield
    finally:
        torch.set_num_threads(here)


def _weights(result: dict[str, Any]) -> list[str]:
    return [str(name) for name in result.get("files", []) if str(name).endswith(".safetensors")]


def _line(finding: Finding) -> str:
    told = finding.note if not finding.compared else "bit-equal" if finding.difference is None else "DIFFERENT"
    more = finding.difference or (finding.note if finding.compared else "")
    return f"{finding.what:<12} {finding.file}: {told}" + (f", {more}" if more else "")


def _verdict(found: list[Finding]) -> str:
    different = sum(finding.difference is not None for finding in found)
    if different:
        return f"Different: {different} of {sum(f.compared for f in found)} files."
    left_out = [f.file for f in found if not f.compared]
    return "Bit-equal" + (f", except that {', '.join(left_out)} could not be compared." if left_out else ".")
