"""An adapter folder as verification sees it: its pairs, the parts it saved whole, and what nobody understands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from rmlora.analysis.folder import CONFIG_NAME, WEIGHTS_NAME, AdapterFolder, open_adapter
from rmlora.analysis.stored import StoredPair, read_pairs
from rmlora.run.environment import hash_file

HEAD_NAME = "modules_to_save.safetensors"
"""Where `--portable` puts what the adapter saved whole, under the base model's own parameter names."""
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Subject:
    """The adapter that is verified.

    Attributes:
        adapter: its folder, opened.
    """

    adapter: AdapterFolder

    @property
    def path(self) -> Path:
        """The folder."""
        return self.adapter.path

    @property
    def config(self) -> dict[str, Any]:
        """adapter_config.json."""
        return self.adapter.config

    @cached_property
    def pairs(self) -> list[StoredPair]:
        """A, B and scale of every adapted module."""
        return read_pairs(self.adapter)

    @cached_property
    def whole(self) -> dict[str, Tensor]:
        """Tensors of the folder that are no factors of a pair, by their names in the base model."""
        keys = [key for key in self.adapter.keys if ".lora_" not in key]
        found = {_plain(key): tensor for key, tensor in self.adapter.tensors(keys).items()}
        beside = self.path / HEAD_NAME
        if beside.is_file():
            from safetensors.torch import load_file

            found |= load_file(beside)
        return found

    def whole_parts(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return those of the whole parts that a model has under these names."""
        known = set(names)
        return {name: tensor for name, tensor in self.whole.items() if name in known}

    @property
    def odd(self) -> tuple[str, ...]:
        """Tensors of adapter_model.safetensors that are neither A nor B: heads, biases, magnitudes.

        Embeddings that PEFT copied beside their factors do not count: everybody passes them over.
        """
        factors = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
        copies = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
        return tuple(key for key in self.adapter.keys if not key.endswith((*factors, *copies)))

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files that make the adapter."""
        files = (self.path / name for name in (CONFIG_NAME, WEIGHTS_NAME, HEAD_NAME))
        return {file.name: hash_file(file) for file in files if file.is_file()}


def open_subject(folder: str | Path) -> Subject:
    """Open an adapter folder.

    Raises:
        AdapterError: as `open_adapter`, or its pairs cannot be read.
    """
    subject = Subject(open_adapter(folder))
    _ = subject.pairs
    return subject


def _plain(key: str) -> str:
    name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
    return name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
