"""What a run depended on: versions, code state, machine, and hashes of the model and the data."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rmlora.errors import StateError

PACKAGES = (
    "rmlora",
    "torch",
    "peft",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
)
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


def describe_environment(
    model_name: str, model: Any, data_files: Iterable[Path], init_adapter: str | None = None
) -> dict[str, Any]:
    """Collect everything outside the configuration that the numbers of a run may depend on.

    Args:
        model_name: folder or Hub id.
        model: the loaded model, which knows the Hub commit it came from.
        data_files: local files that were read.
        init_adapter: folder of the adapter that training went on from; None if there was none.

    Returns:
        Plain values, ready for JSON.
    """
    return {
        **describe_process(),
        "model": describe_model(model_name, model),
        "data": {str(path): hash_tree(path) for path in data_files},
        **({} if init_adapter is None else {"init_adapter": describe_folder(init_adapter)}),
    }


def continue_environment(before: dict[str, Any], now: dict[str, Any], step: int) -> dict[str, Any]:
    """Join what a run depended on when it began with what it depends on as it goes on.

    Args:
        before: as it was written when the run began.
        now: as it is.
        step: the optimizer step it goes on from.

    Returns:
        `before`, with versions and machine of now appended under "resumed".

    Raises:
        StateError: the model or a data file has changed since.

    Example:
        >>> begun = {"model": {}, "data": {"a.csv": "0f"}, "versions": {}, "machine": {}}
        >>> continue_environment(begun, begun, step=5)["resumed"][0]["step"]
        5
    """
    if before["model"].get("files") != now["model"].get("files"):
        raise StateError(f'--resume: the files of "{now["model"]["name"]}" have changed since the run began')
    changed = [name for name, digest in now["data"].items() if before["data"].get(name) != digest]
    if changed:
        raise StateError(f'--resume: "{changed[0]}" has changed since the run began; start anew with --overwrite')
    later = {"step": step, "versions": now["versions"], "machine": now["machine"]}
    return before | {"resumed": [*before.get("resumed", []), later]}


def describe_process() -> dict[str, Any]:
    """Collect what was typed, where, and under which versions, as plain values."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "folder": str(Path.cwd()),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "git": git_state(Path.cwd()),
        "machine": describe_machine(),
    }


def describe_machine() -> dict[str, Any]:
    """Name the system, processor, memory and GPUs.

    Example:
        >>> sorted(describe_machine())
        ['cores', 'gpus', 'memory_gib', 'processor', 'system', 'threads', 'world_size']
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpus": gpus,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def describe_model(name: str, model: Any) -> dict[str, Any]:
    """Identify a model: by the hashes of its files if it is a folder, else by its Hub commit."""
    if Path(name).expanduser().is_dir():
        return describe_folder(name)
    return {"name": name, "commit": getattr(model.config, "_commit_hash", None)}


def describe_folder(name: str) -> dict[str, Any]:
    """Identify a model or adapter on disk by the hashes of its files; none where there is no folder."""
    folder = Path(name).expanduser()
    files = sorted({p for pattern in _MODEL_FILES for p in folder.glob(pattern)})
    return {"name": name, "files": {p.name: hash_file(p) for p in files}}


def hash_tree(path: Path) -> str:
    """Hash a file, or the names and contents of all files of a folder."""
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path)}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    state = path.stat()
    return _hash(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1024)
def _hash(path: Path, changed: int, size: int) -> str:
    """Hash a file once for as long as it does not change: runs of one process share their model."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit, branch and whether there are changes, or None outside a git checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(status),
    }


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *words],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None.

    Example:
        >>> package_version("no-such-package") is None
        True
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
