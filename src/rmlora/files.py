"""Writing files so that a reader, or a crash, never meets half of one."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from rmlora.errors import RmloraError


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8 to `path`: to a temporary name beside it first, then renamed.

    Args:
        path: the file; missing parent folders are made.
        text: what it shall hold; an existing file is replaced whole.

    Returns:
        `path`.

    Raises:
        RmloraError: the folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> write_text(Path(tempfile.mkdtemp()) / "new" / "a.txt", "one line").read_text()
        'one line'
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))  # half characters as JSON writes them


def write_bytes(path: Path, data: bytes) -> Path:
    """Write `data` to `path` atomically; the same contract as `write_text`.

    Args:
        path: the file; missing parent folders are made.
        data: what it shall hold; an existing file is replaced whole.

    Returns:
        `path`.

    Raises:
        RmloraError: the folder cannot be made or written.
    """
    # Another machine may write the same file with the same process number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None
        raise RmloraError(f'cannot write "{path}": {error.strerror}') from error
    return path


def move_in(folder: Path, write: Callable[[Path], object]) -> list[str]:
    """Let `write` fill an empty folder within `folder`, then move its files up into `folder`, one after the other.

    For files that belong together: nothing of them is there before all of them are written. A process killed while it
    writes leaves a hidden folder `.weights-*`.

    Args:
        folder: an existing folder; files of the same names are replaced.
        write: is given the folder to fill; what it raises is passed on, and `folder` is as it was.

    Returns:
        Names of the files, sorted. Folders that `write` made are dropped.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> move_in(folder, lambda place: (place / "a.txt").write_text("one line"))
        ['a.txt']
        >>> [path.name for path in folder.iterdir()]
        ['a.txt']
    """
    with tempfile.TemporaryDirectory(prefix=".weights-", dir=folder) as temporary:
        write(Path(temporary))
        files = sorted(path for path in Path(temporary).iterdir() if path.is_file())
        for file in files:
            os.replace(file, folder / file.name)
    return [file.name for file in files]


def check_writable(folder: Path) -> None:
    """Refuse a folder in which nothing could be written, before any work is done for it.

    Args:
        folder: an existing folder, or one that would have to be made. Nothing is left behind.

    Raises:
        RmloraError: something on the way is a file, is missing and cannot be made, or is read-only.
    """
    parent = folder
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise RmloraError(f'cannot write to "{folder}": "{parent}" is a file, not a folder')
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".rmlora-", dir=parent))
    except OSError as error:
        reason = error.strerror or "not writable"
        raise RmloraError(
            f'cannot write to "{folder}": {reason} in "{parent}"; choose another output folder'
        ) from error
