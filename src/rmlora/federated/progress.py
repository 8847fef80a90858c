"""How far a run has come: the trained tensors after its last finished round, and its rows so far."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from rmlora.federated.averaging import State
from rmlora.files import write_bytes, write_text
from rmlora.run.folder import RunFolder


@dataclass
class Progress:
    """Rounds that are finished.

    Attributes:
        state: trained tensors that are not as they were at the start.
        rows: of metrics.jsonl, one per round that was evaluated.
        seconds: that each round took.
        since: what is to be said of the rounds since the last row.
    """

    state: State = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    since: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """How many are finished."""
        return len(self.seconds)


def save_progress(place: RunFolder, progress: Progress) -> None:
    """Write a finished round: its tensors, then progress.json, which makes it count, then metrics.jsonl."""
    from safetensors.torch import save

    name = f"round-{progress.rounds}.safetensors"
    write_bytes(place.checkpoints / name, save(progress.state))
    told: dict[str, Any] = {"round": progress.rounds, "state": name}
    told |= {"rows": progress.rows, "seconds": progress.seconds, "since": progress.since}
    write_text(place.progress, json.dumps(told) + "\n")
    place.write_rows(progress.rows)
    for other in place.checkpoints.glob("round-*.safetensors"):
        if other.name != name:
            other.unlink(missing_ok=True)


def read_progress(place: RunFolder) -> Progress:
    """Read what is finished; nothing if there is nothing, or what is there is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        told = json.loads(place.progress.read_text(encoding="utf-8"))
        state = load_file(place.checkpoints / str(told["state"]))
        progress = Progress(state, list(told["rows"]), list(told["seconds"]), list(told["since"]))
        last = progress.rows[-1]["epoch"] if progress.rows else 0
        is_whole = told["round"] == progress.rounds == last + len(progress.since)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError):
        return Progress()
    return progress if is_whole else Progress()
