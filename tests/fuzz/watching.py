"""What no input may bring about: a pickle opened, a file written outside the case's folder."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_OWN = ("/dev/", "/proc/", str(Path.home() / ".cache"), str(Path.home() / ".config"))
_allowed: list[str] = []
_seen: list[str] = []


def _look(event: str, args: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    if event in _RUNS and not (event == "subprocess.Popen" and str(args[0]).endswith("git")):
        _seen.append(f"{event} {args[:1]}")
    elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        flags, path = args[2] if isinstance(args[2], int) else 0, os.fsdecode(args[0])
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _write(event, path)
        elif path.endswith(_PICKLES):
            _seen.append(f"reads {path}")
    elif event in _CHANGES and isinstance(args[0], str | bytes | os.PathLike):
        _write(event, os.fsdecode(args[0]))


def _write(event: str, path: str) -> None:
    whole = os.path.abspath(path)
    if not whole.startswith((*_allowed, *_OWN)) and "__pycache__" not in whole:
        _seen.append(f"{event} {whole}")


sys.addaudithook(_look)


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Hold that what happens inside opens no pickle, starts nothing, and writes below `folder` alone."""
    _seen.clear()
    _allowed.append(str(folder))
    try:
        yield
    finally:
        _allowed.clear()
    assert not _seen
