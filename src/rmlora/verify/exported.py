"""The merged model as exporters want it: tensors in by position, one tensor out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.verify.base_model import BaseModel
from rmlora.verify.certificate import Check
from rmlora.verify.peft_reload import merged_into_base, reload, weights_check
from rmlora.verify.probe import answer, distance, output_of, probe
from rmlora.verify.subject import Subject


class Positional(nn.Module):
    """A model whose keyword arguments are given in order, and whose result is its one tensor."""

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.without_cache = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits, or hidden states."""
        return output_of(self.model(**dict(zip(self.names, inputs, strict=True)), **self.without_cache))


@dataclass(frozen=True)
class Merged:
    """A merged model, and what its unmerged self answered.

    Attributes:
        model: takes the tensors of `inputs` in order.
        inputs: what is exported with, and asked.
        other: inputs of another number of rows.
        expected: what the unmerged adapter gave for `inputs`.
        expected_other: and for `other`.
        effect: how far the answers with and without the adapter are apart.
        complete: the check that every weight comes from a file.
    """

    model: Positional
    inputs: dict[str, Tensor]
    other: dict[str, Tensor]
    expected: Tensor
    expected_other: Tensor
    effect: float
    complete: Check


def merge(subject: Subject, base: BaseModel) -> Merged:
    """Merge an adapter into its base in fp32, having asked it unmerged first.

    Raises:
        AdapterError: base and adapter do not fit, or the model cannot be probed.
    """
    model = reload(subject, base, torch.float32)
    missing = base.load()[1]
    inputs, other = probe(model), probe(model, rows=3)
    expected, expected_other = answer(model, inputs), answer(model, other)
    with model.disable_adapter():
        effect = distance(answer(model, inputs), expected)
    merged = Positional(merged_into_base(model), tuple(inputs))
    return Merged(merged, inputs, other, expected, expected_other, effect, weights_check(missing))
