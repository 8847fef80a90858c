"""What a candidate is worth: one pass over examples, without gradients and without dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.config import RunConfig
from rmlora.derivative_free.projections import FactorPairs
from rmlora.errors import ConfigError
from rmlora.heads.backbone import input_of
from rmlora.heads.fitting import task_loss
from rmlora.pairs import Pair
from rmlora.run.trainer import collate

Batch = dict[str, Tensor]


def read_batches(
    encoded: Any, processor: Any, config: RunConfig, device: torch.device, any_order: bool = False
) -> list[Batch]:
    """Pad examples into batches once; they stay on the device.

    Args:
        encoded: what the model reads of each example, with labels.
        processor: tokenizer or image processor.
        config: for the task and `training.eval_batch_size`.
        device: of the model.
        any_order: put texts of similar length together, so that less is padded.
    """
    if any_order and "input_ids" in encoded[0]:
        lengths = [len(encoded[i]["input_ids"]) for i in range(len(encoded))]
        encoded = [encoded[i] for i in sorted(range(len(encoded)), key=lambda i: lengths[i])]
    loader = torch.utils.data.DataLoader(
        encoded, config.training.eval_batch_size, collate_fn=collate(config.task, processor)
    )
    return [{name: value.to(device) for name, value in dict(batch).items()} for batch in loader]


def write_factors(pairs: Sequence[Pair], factors: FactorPairs) -> None:
    """Write factors into the live parameters, in place.

    Args:
        pairs: of the model.
        factors: by name; those of other modules stay as they are.
    """
    with torch.no_grad():
        for pair in pairs:
            if pair.name in factors:
                for parameter, value in zip(pair.parameters, factors[pair.name], strict=True):
                    parameter.copy_(value)


def factor_shapes(pairs: Sequence[Pair]) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Shapes of A and B by module name.

    Raises:
        ConfigError: a module is no linear layer.
    """
    for pair in pairs:
        if any(parameter.dim() != 2 for parameter in pair.parameters):
            raise ConfigError(
                f"scope=derivative-free searches for matrices, and {pair.name} is no linear layer; leave it out of "
                "lora.target_modules"
            )
    found = {}
    for pair in pairs:
        A, B = pair.parameters
        found[pair.name] = ((A.shape[0], A.shape[1]), (B.shape[0], B.shape[1]))
    return found


@torch.no_grad()
def run_model(model: Any, batches: Sequence[Batch]) -> Tensor:
    """Return the model's outputs `(n, outputs)` in float32, in evaluation mode."""
    model.eval()
    outputs = []
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        outputs.append(model(**inputs).logits.float())
    return torch.cat(outputs)


def labels_of(batches: Sequence[Batch]) -> Tensor:
    """Labels of all examples, `(n,)`."""
    return torch.cat([batch["labels"] for batch in batches])


def loss_of(model: Any, batches: Sequence[Batch]) -> float:
    """Mean cross-entropy, or mean squared error of a regression."""
    return float(task_loss(run_model(model, batches), labels_of(batches)))


@torch.no_grad()
def features_of(layer: nn.Linear, model: Any, batches: Sequence[Batch]) -> Tensor:
    """Return what a layer of the model reads, float32 `(n, d)`."""
    model.eval()
    return torch.cat([input_of(layer, model, batch).float() for batch in batches])
