"""A model's outputs in evaluation, and how far apart two of them are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rmlora.run.plan import Plan
from rmlora.run.trainer import collate

Outputs = dict[str, Tensor]


@torch.no_grad()
def logits_of(model: Any, plan: Plan, examples: Sequence[Any]) -> Outputs:
    """Return the logits of a model for encoded examples as one batch, dropout off.

    Args:
        model: put into evaluation mode while it computes, and back.
        plan: of the run; pads the batch.
        examples: of `plan.encoded`.

    Returns:
        By name, in float32 on the CPU; where there is a row for every token, that of padding is left out.
    """
    batch = collate(plan.config.task, plan.processor)(list(examples))
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    was_training = model.training
    model.eval()
    try:
        outputs = model(**inputs)
    finally:
        model.train(was_training)
    mask = inputs.get("attention_mask")
    return {name: _seen(value, mask) for name, value in outputs.items() if name.endswith("logits")}


def _seen(logits: Tensor, mask: Tensor | None) -> Tensor:
    logits = logits.float()
    if mask is not None and logits.shape[:2] == mask.shape and logits.dim() > 1:
        logits = logits.masked_fill(~mask.bool().view(*mask.shape, *[1] * (logits.dim() - 2)), 0.0)
    return logits.cpu()


def apart(gap: float) -> str:
    """Say how far apart outputs are.

    Example:
        >>> apart(0.0), apart(2e-3)
        ('outputs are equal', 'outputs differ by 2e-03 of the largest')
    """
    return f"outputs differ by {gap:.0e} of the largest" if gap else "outputs are equal"


def gap(found: Outputs, expected: Outputs) -> float:
    """Return the largest difference of two models' outputs over the largest output, infinite where one is no number.

    Example:
        >>> gap({"logits": torch.tensor([1.0, 2.0])}, {"logits": torch.tensor([1.0, 4.0])})
        0.5
    """
    largest = max(float(value.abs().max()) for value in expected.values())
    apart = max(float((found[name] - value).abs().max()) for name, value in expected.items())
    return apart / max(largest, 1e-12) if apart == apart else float("inf")
