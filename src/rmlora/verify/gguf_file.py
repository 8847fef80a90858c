"""A LoRA as llama.cpp keeps it: names and rows of its own, two tensors a module, one alpha; written and read back.

Paraphrased from ggml-org/llama.cpp: convert_lora_to_gguf.py at 0b03adaa632b76c7651dd1f6fa3b7a0b5eda479c (what is
written), conversion/llama.py at 0274f0fc7d7fbab69c33ccf757cf7f3d036c17aa (rows of q and k), src/llama-adapter.cpp at
0650ea8c05bc6e31273182470197e9b2e50253e0 (what a reader asks for) and src/llama-adapter.h at
215841fc0178de0797d23f1cae8ab8ee1baa8eb9 (the scale, alpha over the rank of the tensor at hand).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmlora.errors import AdapterError

EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class Dialect:
    """How llama.cpp names and lays out the weights of an architecture.

    Attributes:
        arch: its name in llama.cpp.
        heads: attention heads of q and of k where their rows are reordered; None where they are not.
        blocks: transformer blocks.
    """

    arch: str
    heads: tuple[int, int] | None
    blocks: int

    def name(self, module: str) -> str:
        """Return the name of a module's weight.

        Args:
            module: its name in transformers.

        Raises:
            AdapterError: llama.cpp has no such weight.
        """
        import gguf

        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.arch)
        found = gguf.get_tensor_name_map(arch, self.blocks).get_name(f"{module}.weight", (".weight",))
        if found is None:
            raise AdapterError(f'llama.cpp has no weight for "{module}" in a model of kind {self.arch}')
        return str(found)

    def rows(self, X: Tensor, module: str) -> Tensor:
        """Return rows in the order llama.cpp keeps them: q and k of Llama have the halves of each head interleaved.

        Args:
            X: `(d_out, ...)`: B, or a whole weight.
            module: its name in transformers.

        Example:
            >>> Dialect("llama", (1, 1), 1).rows(torch.arange(4), "layers.0.q_proj").tolist()
            [0, 2, 1, 3]
        """
        side = next((i for i, end in enumerate(("q_proj", "k_proj")) if module.endswith(end)), None)
        if self.heads is None or side is None:
            return X
        halves = X.reshape(self.heads[side], 2, -1, *X.shape[1:])
        return halves.transpose(1, 2).reshape(X.shape)


@dataclass(frozen=True)
class GgufLora:
    """A LoRA read from a GGUF file.

    Attributes:
        fields: the text and number fields of its header.
        factors: (A, B) by the weight's name, as stored.
    """

    fields: dict[str, Any]
    factors: dict[str, tuple[Tensor, Tensor]]

    def update(self, name: str) -> Tensor:
        """Return what llama.cpp adds to a weight `(d_out, d_in)`, in float64; of embeddings `(vocabulary, d)`."""
        A, B = (X.double() for X in self.factors[name])
        alpha = float(self.fields["adapter.lora.alpha"])
        scale = alpha / B.shape[1] if alpha else 1.0
        return scale * (A @ B.T if name == EMBEDDING else B @ A)


def write_gguf(file: Path, arch: str, alpha: float, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Write a LoRA.

    Args:
        file: replaced if it is there.
        arch: the name of the architecture in llama.cpp.
        alpha: lora_alpha.
        factors: A `(r, d_in)` and B `(d_out, r)` by the weight's name, in float32.
    """
    import gguf

    writer = gguf.GGUFWriter(str(file), arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, (A, B) in factors.items():
        writer.add_tensor(f"{name}.lora_a", (A.T if name == EMBEDDING else A).contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", B.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(file: Path) -> GgufLora:
    """Read a LoRA back with gguf's own reader."""
    import gguf

    reader = gguf.GGUFReader(str(file))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    ends = (".lora_a", ".lora_b")
    names = sorted({name.removesuffix(end) for name in tensors for end in ends if name.endswith(end)})
    return GgufLora(fields, {name: (tensors[name + ends[0]], tensors[name + ends[1]]) for name in names})
