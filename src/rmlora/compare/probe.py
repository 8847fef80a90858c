"""Whether other machines see what this one sees: the study's folder, its models and its data, at the same paths."""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.errors import RmloraError
from rmlora.files import write_text

_PATIENCE_SECONDS = 10.0  # network file systems show new files late


@dataclass(frozen=True)
class Probe:
    """A file that a coordinator left in the study's folder, to be looked for from elsewhere.

    Attributes:
        path: of the file; its name is what it says.
        needed: models and data, as full paths.
    """

    path: str
    needed: tuple[str, ...]


def leave_probe(study: Study, store: Store) -> Probe:
    """Write a probe into the folder of a study.

    Args:
        study: names the models and data; what comes from a Hub is not looked for.
        store: its folder.

    Raises:
        RmloraError: the folder cannot be written.
    """
    named = [*study.models, *(f for task in study.tasks for f in (task.data.train, task.data.eval) if f)]
    needed = dict.fromkeys(str(p.resolve()) for p in (Path(name).expanduser() for name in named) if p.exists())
    path = store.path.resolve() / f".probe-{secrets.token_hex(4)}"
    return Probe(str(write_text(path, path.name)), tuple(needed))


def look_for(probe: Probe, patience: float = _PATIENCE_SECONDS) -> str | None:
    """Say from this machine what of a probe it cannot see, or None; an answer is written beside the probe.

    Args:
        probe: as `leave_probe` returned it, here or elsewhere.
        patience: seconds to wait for a file system that shows new files late.

    Returns:
        What is wrong, as the end of a sentence about this machine; None if nothing is.
    """
    path, host = Path(probe.path), socket.gethostname()
    if not _appears(path, patience):
        return f'{host} does not see the study\'s folder "{path.parent}"'
    missing = next((name for name in probe.needed if not Path(name).exists()), None)
    if missing is not None:
        return f'{host} does not see "{missing}"'
    try:
        write_text(answer_of(probe, host), host)
    except RmloraError:
        return f'{host} cannot write to "{path.parent}"'
    return None


def has_answered(probe: Probe, host: str, patience: float = _PATIENCE_SECONDS) -> bool:
    """Whether what a machine wrote beside the probe is seen here."""
    return _appears(answer_of(probe, host), patience)


def remove_probe(probe: Probe) -> None:
    """Remove a probe and its answers."""
    path = Path(probe.path)
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink(missing_ok=True)


def answer_of(probe: Probe, host: str) -> Path:
    """Where a machine answers."""
    return Path(f"{probe.path}-{host}")


def _appears(path: Path, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not path.is_file():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
