"""An expert: a trained LoRA adapter as it lies on disk, known to be plain, and known by its hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmlora.analysis.folder import CONFIG_NAME, WEIGHTS_NAME, AdapterFolder, open_adapter
from rmlora.analysis.stored import StoredPair, read_pairs
from rmlora.errors import AdapterError
from rmlora.prune_export import MOVES_BASE

_NOT_PLAIN = {
    "use_dora": "magnitudes (DoRA)",
    "lora_bias": "biases of B",
    "target_parameters": "factors of bare parameters",
    "trainable_token_indices": "trained tokens",
    "layer_replication": "replicated layers",
    "megatron_config": "Megatron's layers",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "arrow_config": "a router of its own (Arrow)",
    "use_qalora": "grouped inputs (QA-LoRA)",
}


@dataclass(frozen=True, eq=False)
class Expert:
    """One trained adapter; its tensors stay on disk.

    Attributes:
        name: distinct among the experts opened together: the end of the path, as long as is needed.
        folder: as opened.
        sha256: of adapter_model.safetensors, in hexadecimal.
    """

    name: str
    folder: AdapterFolder
    sha256: str

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder.path

    @property
    def base(self) -> str | None:
        """Name of the model it is an adapter of, as PEFT wrote it."""
        name = self.folder.config.get("base_model_name_or_path")
        return str(name) if name else None

    def pairs(self) -> list[StoredPair]:
        """Read its factors and scales, in the order of module names.

        Raises:
            AdapterError: they are damaged, or contradict the configuration.
        """
        return read_pairs(self.folder)


def open_experts(paths: Sequence[str | Path]) -> list[Expert]:
    """Open adapters that are to work together; only their headers are read, and their bytes hashed.

    Ranks, scales and adapted modules may differ. Heads that were saved with them are left alone.

    Args:
        paths: a folder each, as PEFT's `save_pretrained` writes it.

    Raises:
        AdapterError: none is given; one is missing, damaged or no plain LoRA.

    Example:
        >>> open_experts(["no/such/expert"])
        Traceback (most recent call last):
        ...
        rmlora.errors.AdapterError: No adapter folder at no/such/expert; give the folder that holds ...
    """
    if not paths:
        raise AdapterError("no experts: give the folders of trained LoRA adapters of one model")
    folders = [open_adapter(Path(path).expanduser()) for path in paths]
    for folder in folders:
        _refuse_not_plain(folder)
    names = distinct_names([folder.path for folder in folders])
    return [
        Expert(name, folder, hash_file(folder.path / WEIGHTS_NAME)) for name, folder in zip(names, folders, strict=True)
    ]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name folders by the shortest end of their paths that tells them apart; equal paths get a number.

    Example:
        >>> distinct_names([Path("a/rte/adapter"), Path("a/cola/adapter"), Path("b/mrpc")])
        ['rte/adapter', 'cola/adapter', 'mrpc']
        >>> distinct_names([Path("a/x"), Path("a/x")])
        ['x', 'x-2']
    """
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    names: list[str] = []
    for i, own in enumerate(parts):
        others = [other for j, other in enumerate(parts) if j != i and other != own]
        length = next(n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        names.append("/".join(own[-length:]))
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        names[i] = name if seen[name] == 1 else f"{name}-{seen[name]}"
    return names


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        AdapterError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AdapterError(f'cannot read "{path}": {error.strerror}') from error


def _refuse_not_plain(folder: AdapterFolder) -> None:
    """Refuse what is not A and B alone, or does not act on the published base."""
    config: dict[str, Any] = folder.config
    if folder.peft_type != "LORA":
        raise AdapterError(f'expert "{folder.path}" is a {folder.peft_type} adapter; experts are plain LoRA')
    found = next((what for name, what in _NOT_PLAIN.items() if config.get(name)), None)
    if config.get("bias", "none") != "none":
        found = "trained biases"
    if found is not None:
        raise AdapterError(f'expert "{folder.path}" has {found} beside A and B; experts are plain LoRA')
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(MOVES_BASE):
        raise AdapterError(
            f'expert "{folder.path}" was saved for the base as {start} changed it; save it with '
            "path_initial_model_for_weight_conversion, which gives plain LoRA of the published base"
        )
    if not any(".lora_A" in key for key in folder.keys):
        raise AdapterError(f'expert "{folder.path}" has no lora_A tensors beside {CONFIG_NAME}; save it again')
