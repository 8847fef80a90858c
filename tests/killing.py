"""Processes that the kernel ends at a chosen moment, with no chance to tidy up; and what must be whole afterwards."""

import json
import multiprocessing
import os
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

import rmlora.train  # noqa: F401  (loaded once, in the process that others are forked from)
from rmlora.cli import main
from rmlora.run.folder import RunFolder

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
_ABOUT = ("claim.json", "log.txt")


@dataclass(frozen=True)
class Moment:
    """When a process is ended.

    Attributes:
        change: at this change of a file below the folder, counted from 0; None: at no change.
        delay: seconds after that, or after the start.
    """

    change: int | None
    delay: float


class Counter:
    """Counts changes of files below a folder, as the interpreter is about to make them, and ends the process."""

    def __init__(self, folder: Path, moment: Moment | None) -> None:
        self.folder, self.moment, self.count = str(folder), moment, 0
        if moment is not None and moment.change is None:
            self.end_after(moment.delay)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not _writes(event, args) or not str(args[0]).startswith(self.folder):
            return
        if self.moment is not None and self.moment.change == self.count:
            self.end_after(self.moment.delay)
        self.count += 1

    def end_after(self, delay: float) -> None:
        if delay <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # its default ends the process in the kernel, as SIGKILL does
        signal.setitimer(signal.ITIMER_REAL, delay)


def _writes(event: str, args: tuple[Any, ...]) -> bool:
    if event == "open":
        flags = args[2] if isinstance(args[2], int) else 0
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in _CHANGES


def _child(words: list[str], folder: Path, moment: Moment | None, told: Any) -> None:
    import torch

    torch.set_num_threads(1)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    counter = Counter(folder, moment)
    sys.addaudithook(counter)
    try:
        main(words)
    except SystemExit as stop:
        told.send((int(stop.code or 0), counter.count))


def run(words: list[object], folder: Path, moment: Moment | None = None) -> tuple[int, int]:
    """Run a command in a process of its own; return its exit code, negative if it was ended, and changes it made."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killing"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=([str(word) for word in words], folder, moment, there))
    process.start()
    there.close()
    process.join()
    try:
        return here.recv()
    except EOFError:
        return process.exitcode, 0


def moments(seed: int, changes: int, seconds: float) -> Any:
    """Moments without end: three of four at a change of a file or shortly after it, the others at any time."""
    rng = random.Random(seed)
    while True:
        delay = rng.choice((0.0, rng.uniform(0, 0.003)))
        yield Moment(rng.randrange(changes), delay) if rng.random() < 0.75 else Moment(None, rng.uniform(0.01, seconds))


def assert_whole(folder: Path) -> None:
    """Hold that every file of its final name is whole; what is still to be renamed begins with a dot."""
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts
        if path.is_file() and not any(p.startswith((".", "checkpoint")) for p in inside) and path.name not in _ABOUT:
            _read(path)
    for run_folder in {path.parent.parent for path in folder.rglob("checkpoint-*")} - {folder.parent}:
        checkpoint = RunFolder(run_folder.parent if run_folder.name == "checkpoints" else run_folder).checkpoint()
        if checkpoint is not None:
            for path in checkpoint.iterdir():
                _read(path)


def _read(path: Path) -> None:
    if path.suffix == ".safetensors":
        load_file(path)
        return
    data = path.read_bytes()
    assert data or path.name == "rows.jsonl", path  # a study without a finished cell has no rows
    if path.suffix == ".json":
        json.loads(data)
    elif path.suffix == ".jsonl":
        assert all(json.loads(line) for line in data.decode().splitlines())
        assert data.endswith(b"\n") or not data, path
    elif path.suffix == ".yaml":
        assert isinstance(yaml.safe_load(data), dict), path
    elif path.suffix == ".png":
        assert b"IEND" in data[-12:], path
    elif path.suffix in (".html", ".svg"):
        assert data.rstrip().endswith((b"</html>", b"</svg>")), path
