"""Keeping computed tensors under the user's cache folder, so that a damaged file is never taken for a good one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmlora.errors import RmloraError
from rmlora.files import write_bytes

_TENSOR = "features"


def cache_folder() -> Path:
    """Return where features are kept: under $XDG_CACHE_HOME, or under ~/.cache; it need not exist."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "rmlora" / "features"


def cache_file(known: Mapping[str, Any]) -> Path:
    """Return the file of what is computed from `known`: its name is a hash of all of it.

    Args:
        known: everything the tensor depends on, as JSON would hold it.

    Example:
        >>> cache_file({"model": "a"}) == cache_file({"model": "b"})
        False
    """
    text = json.dumps(known, sort_keys=True)
    return cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def keep(file: Path, tensor: Tensor, notes: Mapping[str, str]) -> bool:
    """Write a tensor whole or not at all; a cache that cannot be written is no error.

    Args:
        file: from `cache_file`.
        tensor: on any device; not mutated.
        notes: read back with it.

    Returns:
        Whether it was kept.
    """
    from safetensors.torch import save

    stored = tensor.detach().cpu().contiguous()
    try:
        write_bytes(file, save({_TENSOR: stored}, metadata={**notes, "sha256": _digest(stored)}))
    except RmloraError:
        return False
    return True


def recall(file: Path, rows: int) -> tuple[Tensor, dict[str, str]] | None:
    """Read a kept tensor, or None if it is not there, cut off, changed, or of the wrong length.

    Args:
        file: from `cache_file`.
        rows: how many examples it must hold.

    Returns:
        The tensor and its notes.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            notes = dict(opened.metadata() or {})
            tensor: Tensor = opened.get_tensor(_TENSOR)
    except (OSError, SafetensorError):
        return None
    is_whole = tensor.dim() == 2 and len(tensor) == rows and notes.pop("sha256", None) == _digest(tensor)
    return (tensor, notes) if is_whole else None


def _digest(tensor: Tensor) -> str:
    # the format checks lengths, not contents: a flipped byte would train on
    return hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
