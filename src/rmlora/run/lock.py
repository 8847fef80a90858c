"""One process per output folder: a lock that the kernel takes from a process that dies, however it dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rmlora.errors import RmloraError, StateError
from rmlora.run.folder import RunFolder


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Hold a run's folder for as long as the context lasts.

    A killed process leaves the empty file `.lock`; what counts is whether a living process holds it.

    Args:
        folder: made if it is not there.

    Raises:
        StateError: another process holds it.
        RmloraError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder.lock)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise _taken(folder) from None
    except OSError as error:
        raise RmloraError(f'cannot write "{folder.lock}": {error.strerror}') from error
    try:
        yield
    finally:
        folder.lock.unlink(
            missing_ok=True
        )  # while it is held: whoever opened it meanwhile finds it gone and tries anew
        lock.release()


def refuse_held(folder: RunFolder) -> None:
    """Refuse a folder in which another process is training, before any work is done; nothing is written.

    Raises:
        StateError: another process holds it.
    """
    if folder.lock.is_file():
        with held(folder):
            pass


def _taken(folder: RunFolder) -> StateError:
    return StateError(f'another process is training in "{folder.path}"; wait until it ends, or choose another output')
