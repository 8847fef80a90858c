"""Who works on what: a claim is a file that exactly one process can make, and that a dead one does not keep."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
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
        space: the space its number is counted in, which containers of one machine do not share; empty if not known.
        job: what the coordinator of a study calls the job that the process is; empty without one.
    """

    host: str
    pid: int
    started: int
    space: str = ""
    job: str = field(default="", compare=False)

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine, where its number can be looked up."""
        return self.host == socket.gethostname() and self.space in ("", _space())

    @property
    def is_running(self) -> bool:
        """Whether a process of this machine still lives."""
        return _start_of(self.pid) == self.started and _exists(self.pid)


def this_process(job: str = "") -> Owner:
    """Describe the calling process.

    Args:
        job: what a coordinator calls it.

    Example:
        >>> this_process().is_running
        True
    """
    return Owner(socket.gethostname(), os.getpid(), _start_of(os.getpid()), _space(), job)


def read_claim(path: Path) -> Owner | None:
    """Return who claims, or None if nobody does or the file says nothing."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        words = (str(told.get(name, "")) for name in ("space", "job"))
        return Owner(str(told["host"]), int(told["pid"]), int(told["started"]), *words)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_live(path: Path) -> bool:
    """Whether a living process holds the claim.

    One of another machine lives if it was renewed lately, by the clock of the file system: machines' own may differ.
    """
    owner = read_claim(path)
    if owner is None:
        return False
    if owner.is_here:
        return owner.is_running
    try:
        renewed_at = path.stat().st_mtime
    except OSError:
        return False
    return _now(path.parent) - renewed_at < SILENT_SECONDS


def take(path: Path, job: str = "") -> bool:
    """Claim for this process; a dead one's claim is taken over, and that of an earlier life of the same job.

    Args:
        path: of the claim; its folder is made.
        job: what a coordinator calls this process.

    Returns:
        False if another living process has it.

    Raises:
        RmloraError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _make(path, job):
            return True
        if not _is_free(path, job):
            return False
        with _alone(path.parent):  # two processes may find the same dead claim: the second must not remove the first's
            if _is_free(path, job):
                path.unlink(missing_ok=True)
            return _make(path, job)
    except OSError as error:
        raise RmloraError(f'cannot write "{path}": {error.strerror}') from error


def release(path: Path) -> None:
    """Give a claim back; somebody else's stays."""
    if read_claim(path) == this_process():
        path.unlink(missing_ok=True)


def drop(path: Path, job: str) -> bool:
    """Remove the claim of a job that is known to have ended; return whether it was the job's."""
    try:
        with _alone(path.parent):
            owner = read_claim(path)
            if owner is None or owner.job != job:
                return False
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def renewed(path: Path, lost: Callable[[], None]) -> Iterator[None]:
    """Renew a claim of this process from time to time, for those who cannot see whether it lives.

    Args:
        path: of the claim.
        lost: called, in another thread, if somebody else has taken the claim over.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            if _is_lost(path):
                lost()
                return
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_free(path: Path, job: str) -> bool:
    owner = read_claim(path)
    is_earlier_life = owner is not None and job != "" and owner.job == job and owner != this_process()
    return is_earlier_life or not is_live(path)


def _is_lost(path: Path) -> bool:
    """Whether a claim is no longer this process's; one that cannot be read just now still is."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    owner = read_claim(path)
    return owner is not None and owner != this_process()


def _now(folder: Path) -> float:
    """Read the clock that stamps the files of a folder; without the right to write there, time stands still."""
    try:
        number, name = tempfile.mkstemp(prefix=".clock-", dir=folder)
    except OSError:
        return 0.0
    try:
        os.utime(number)
        return os.fstat(number).st_mtime
    finally:
        os.close(number)
        Path(name).unlink(missing_ok=True)


def _make(path: Path, job: str) -> bool:
    """Create the claim with all it says, or not at all: a link is made only where nothing is."""
    number, name = tempfile.mkstemp(prefix=".claim-", dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump(asdict(this_process(job)), file)
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


def _space() -> str:
    """Name the space that numbers of processes are counted in."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


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
