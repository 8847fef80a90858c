"""The output folder of a run: what lies in it, whether it may be used, and where a run can go on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rmlora.config import RunConfig
from rmlora.config_source import dump
from rmlora.errors import ConfigError, StateError
from rmlora.files import check_writable, write_text

# Settings that may differ between a run and its continuation without changing what is computed.
_FREE = {"output", "training.report_to", "training.keep_checkpoints", "training.num_workers"}
_FREE |= {"evaluation.ensemble", "evaluation.average", "evaluation.chunk"}
_FREE |= {"federated.runtime", "federated.workers", "federated.timeout", "federated.superlink"}

_UNFINISHED = (".weights-", ".adapter-", ".rmlora-")


@dataclass(frozen=True)
class RunFolder:
    """One run on disk.

    Attributes:
        path: the output folder; it need not exist yet.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine, and hashes of what went in."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON row per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """Best and last epoch; written at the very end, so that its presence means the run is finished."""
        return self.path / "result.json"

    @property
    def predictions(self) -> Path:
        """The last epoch's answers to the held-out examples."""
        return self.path / "predictions.safetensors"

    @property
    def joint_predictions(self) -> Path:
        """The same of the ensemble, if one was evaluated."""
        return self.path / "predictions_ensemble.safetensors"

    @property
    def answers(self) -> Path:
        """The same in words, by the question's id; of question answering only."""
        return self.path / "predictions.json"

    @property
    def generated(self) -> Path:
        """What a language model made of held-out prompts."""
        return self.path / "generated.jsonl"

    @property
    def curves(self) -> Path:
        """The plot."""
        return self.path / "curves.png"

    @property
    def matrix(self) -> Path:
        """Accuracy on each task after learning each task; of continual runs only."""
        return self.path / "matrix.json"

    @property
    def heat_map(self) -> Path:
        """Its picture."""
        return self.path / "matrix.png"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def lock(self) -> Path:
        """Held by the process that writes; empty, and no part of the run."""
        return self.path / ".lock"

    @property
    def checkpoints(self) -> Path:
        """The Trainer's checkpoints."""
        return self.path / "checkpoints"

    @property
    def progress(self) -> Path:
        """What a system of several adapters or parties has finished so far; written after what it speaks of."""
        return self.checkpoints / "progress.json"

    def checkpoint(self) -> Path | None:
        """Return the latest complete checkpoint; one that was being written when the run died is passed over."""
        found = [
            p
            for p in self.checkpoints.glob("checkpoint-*")
            if p.name.rpartition("-")[2].isdigit()
            and _is_whole(p / "trainer_state.json")  # the Trainer writes it last
            and (p / "optimizer.pt").is_file()
        ]
        return max(found, key=checkpoint_step, default=None)

    def rows(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl; a line that was cut off by a crash is left out."""
        if not self.metrics.is_file():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl; without rows there is no such file."""
        if rows:
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        else:
            self.metrics.unlink(missing_ok=True)


def checkpoint_step(path: Path) -> int:
    """Read the optimizer step off a checkpoint folder's name.

    Example:
        >>> checkpoint_step(Path("checkpoints/checkpoint-78"))
        78
    """
    return int(path.name.rpartition("-")[2])


def check_folder(folder: RunFolder, config: RunConfig, resume: bool, overwrite: bool) -> bool:
    """Refuse an output folder that cannot or should not be written; nothing is changed.

    Args:
        folder: where the run wants to write.
        config: complete.
        resume: the user asked to go on with what is there.
        overwrite: the user asked to replace what is there.

    Returns:
        True if the run is finished and there is nothing left to do.

    Raises:
        ConfigError: there is something already, or the folder cannot be written.
        StateError: `resume` with other settings than the run was started with.
    """
    check_writable(folder.path)
    if not folder.path.is_dir() or all(_is_litter(path) for path in folder.path.iterdir()):
        return False
    if not folder.config.is_file():
        raise ConfigError(f'output "{folder.path}" is not empty and holds no rmlora run; choose another folder')
    if overwrite:
        return False
    finished = folder.result.is_file()
    if not resume:
        remedy = "--overwrite" if finished else "--resume to go on, --overwrite"
        raise ConfigError(
            f'output "{folder.path}" holds {"a finished" if finished else "an unfinished"} run; '
            f"give {remedy} to start anew, or another output"
        )
    changed = changed_settings(folder, config)
    if changed:
        name, before, now = changed[0]
        raise StateError(
            f'--resume goes on with the same run, but {name} was {before} and is now {now} (in "{folder.config}")'
        )
    return finished


def changed_settings(folder: RunFolder, config: RunConfig) -> list[tuple[str, Any, Any]]:
    """List settings that differ from those the folder's run was started with: name, before, now."""
    before = _flat(yaml.safe_load(folder.config.read_text(encoding="utf-8")) or {})
    now = _flat(yaml.safe_load(dump(config)))
    names = [n for n in dict.fromkeys((*before, *now)) if n not in _FREE]
    return [(n, before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)]


def open_folder(folder: RunFolder, checkpoint: Path | None, overwrite: bool) -> None:
    """Make the folder ready: afterwards nothing in it is later than the checkpoint.

    Args:
        folder: checked by `check_folder`; made if it is not there.
        checkpoint: where the run goes on; None starts at the beginning.
        overwrite: delete what an earlier run wrote, and nothing else.
    """
    for path in folder.path.iterdir() if folder.path.is_dir() else ():
        if _is_litter(path) and path != folder.lock:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if overwrite:
        _clear(folder)
    step = checkpoint_step(checkpoint) if checkpoint is not None else 0
    if folder.metrics.is_file():
        folder.write_rows([row for row in folder.rows() if row["step"] <= step])
    for other in folder.checkpoints.glob("checkpoint-*"):
        if checkpoint_step(other) > step:
            shutil.rmtree(other, ignore_errors=True)


def _clear(folder: RunFolder) -> None:
    written: list[str] = []
    if folder.result.is_file():
        written = list(json.loads(folder.result.read_text(encoding="utf-8")).get("files", []))
    named = (
        folder.result,  # first: from now on the run is not finished
        folder.environment,
        folder.metrics,
        folder.curves,
        folder.matrix,
        folder.heat_map,
        folder.card,
        folder.answers,
        folder.generated,
    )
    for path in (
        *named,
        folder.predictions,
        folder.joint_predictions,
        *(folder.path / Path(name).name for name in written),
    ):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    folder.config.unlink(missing_ok=True)  # last: until now the folder says whose it is


def _is_litter(path: Path) -> bool:
    """Whether a killed process left it behind: its lock, a file or a folder that was still to be renamed."""
    name = path.name
    return name == ".lock" or (name.startswith(".") and (name.endswith(".part") or name.startswith(_UNFINISHED)))


def _is_whole(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
