"""Who works on what: a claim is a file that exactly one process can make, and that a dead one does not keep."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rmlora.errors import RmloraError

BEAT_SECONDS = 15
# A claim of another machine, whose processes cannot be seen from here, is dead when it was not renewed for so long.
SILENT_SECONDS = 600


@dataclass(frozen=True)
class Owner:
    """A process, so that another with the same number is not mistaken for it.

    Attributes:
        host: name of its machine.
        pid: its number there.
        started: when it began, in the kernel's ticks since boot; 0 where that cannot be known.
    """

    host: str
    pid: int
    started: int

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()

    @property
    def is_running(self) -> bool:
        """Whether a process of this machine still lives."""
        return _start_of(self.pid) == self.started and _exists(self.pid)


def this_process() -> Owner:
    """Describe the calling process.

    Example:
        >>> this_process().is_running
        True
    """
    return Owner(socket.gethostname(), os.getpid(), _start_of(os.getpid()))


def read_claim(path: Path) -> Owner | None:
    """Return who claims, or None if nobody does or the file says nothing."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return Owner(str(told["host"]), int(told["pid"]), int(told["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_live(path: Path) -> bool:
    """Whether a living process holds the claim."""
    owner = read_claim(path)
    if owner is None:
        return False
    if owner.is_here:
        return owner.is_running
    try:
        return time.time() - path.stat().st_mtime < SILENT_SECONDS
    except OSError:
        return False


def take(path: Path) -> bool:
    """Claim for this process; a dead one's claim is taken over.

    Args:
        path: of the claim; its folder is made.

    Returns:
        False if another living process has it.

    Raises:
        RmloraError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _make(path):
            return True
        if is_live(path):
            return False
        with _alone(path.parent):  # two processes may find the same dead claim: the second must not remove the first's
            if not is_live(path):
                path.unlink(missing_ok=True)
            return _make(path)
    except OSError as error:
        raise RmloraError(f'cannot write "{path}": {error.strerror}') from error


def release(path: Path) -> None:
    """Give a claim back; somebody else's stays."""
    if read_claim(path) == this_process():
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def renewed(path: Path) -> Iterator[None]:
    """Renew a claim of this process from time to time, for those who cannot see whether it lives."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _make(path: Path) -> bool:
    """Create the claim with all it says, or not at all: a link is made only where nothing is."""
    number, name = tempfile.mkstemp(prefix=".claim-", dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump(asdict(this_process()), file)
        os.link(name, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(name)
    return True


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock that the kernel takes from a process that dies."""
    with (folder / ".takeover").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _start_of(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else 0


def _is_zombie(pid: int) -> bool:
    return _stat(pid)[:1] == ["Z"]


def _stat(pid: int) -> list[str]:
    """Read the kernel's line about a process, after its name, which may hold anything; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []
