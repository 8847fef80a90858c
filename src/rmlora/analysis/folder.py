"""Reading an adapter folder: its configuration and its tensors, nothing built and nothing unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rmlora.errors import AdapterError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
READABLE_TYPES = ("LORA", "ADALORA")


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter as it lies on disk.

    Attributes:
        path: the folder.
        config: adapter_config.json as it is, a JSON object.
        keys: the names of all tensors in adapter_model.safetensors.
    """

    path: Path
    config: dict[str, Any]
    keys: tuple[str, ...]

    @property
    def peft_type(self) -> str:
        """The kind of adapter, upper case: LORA or ADALORA."""
        return str(self.config["peft_type"]).upper()

    def tensors(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Load the named tensors and no others: saved heads and embeddings may be large.

        Args:
            keys: some of `self.keys`.

        Raises:
            AdapterError: the file is damaged.
        """
        with _open_weights(self.path / WEIGHTS_NAME) as file:
            return {key: file.get_tensor(key) for key in keys}


def open_adapter(folder: str | Path) -> AdapterFolder:
    """Open a LoRA-style PEFT adapter folder without loading its tensors.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors, as `save_pretrained` writes them.

    Raises:
        AdapterError: the folder or one of the two files is missing or damaged, the weights are only there as
            a pickle, or the adapter is of another kind than LoRA or AdaLoRA.

    Example:
        >>> open_adapter("no/such/folder")
        Traceback (most recent call last):
        ...
        rmlora.errors.AdapterError: No adapter folder at no/such/folder; give the folder that holds ...
    """
    path = Path(folder)
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing there"
        what = "No adapter folder at" if found == "nothing there" else "Not a folder, but a file:"
        raise AdapterError(f"{what} {path}; give the folder that holds {CONFIG_NAME} and {WEIGHTS_NAME}.")
    config = _read_config(path)
    _check_type(config, path)
    weights = path / WEIGHTS_NAME
    if not weights.is_file():
        raise AdapterError(_without_weights(path))
    with _open_weights(weights) as file:
        return AdapterFolder(path, config, tuple(sorted(file.keys())))


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG_NAME
    if not file.is_file():
        if (path / "mixture.json").is_file():
            raise AdapterError(
                f"{path} holds a mixture of adapters, which is none itself and does not merge: its gates depend on the "
                "input; rmlora.load_mixture loads it."
            )
        below = sorted(str(found.parent.relative_to(path)) for found in path.glob(f"*/{CONFIG_NAME}"))
        remedy = f"its subfolder {below[0]} does: give that" if below else "PEFT's save_pretrained writes it"
        raise AdapterError(f"{path} has no {CONFIG_NAME}; {remedy}.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{file} is not readable JSON ({error}); save the adapter again.") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{file} holds a {type(config).__name__}, not a JSON object; save the adapter again.")
    return config


def _check_type(config: dict[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind.upper() not in READABLE_TYPES:
        got = f"peft_type {kind!r}" if kind is not None else "no peft_type"
        if kind == "VERA":  # the file does not tell how wide the modules are
            got += ", whose A and B are shared (handle.export of rmlora.attach(model, rmlora.vera()) writes plain LoRA)"
        raise AdapterError(
            f"{path / CONFIG_NAME} has {got}; only adapters made of A and B factors can be inspected: "
            f"{' and '.join(READABLE_TYPES)}."
        )


def _without_weights(path: Path) -> str:
    if (path / PICKLE_NAME).exists():
        return (
            f"{path} holds {PICKLE_NAME} only, a pickle, which can run code when opened; if you trust it, load it "
            f"with PEFT and call save_pretrained, which writes {WEIGHTS_NAME}."
        )
    return f"{path} has no {WEIGHTS_NAME}; PEFT's save_pretrained writes it."


def _open_weights(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise AdapterError(f"{file} is damaged or cut short ({reason}); copy or save it again.") from error
