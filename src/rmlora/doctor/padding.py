"""Whether padding changes what a model says of an example."""

from __future__ import annotations

import math
from typing import Any

from rmlora.doctor.failures import FAILURES
from rmlora.doctor.outputs import gap, logits_of
from rmlora.run.plan import Plan

_TRIED = 32


def padding_gap(plan: Plan) -> float | None:
    """Compare the outputs for a short example alone with those beside a long one.

    Args:
        plan: of the run; its model is only asked.

    Returns:
        The largest difference over the largest output; None for images and where all examples are of one length;
        infinite if the model fails on one of them.
    """
    if plan.config.task == "image-classification":
        return None
    held_out = plan.encoded["eval"]
    examples = [held_out[i] for i in range(min(_TRIED, len(held_out)))]
    lengths = [len(example["input_ids"]) for example in examples]
    short, long = lengths.index(min(lengths)), lengths.index(max(lengths))
    if lengths[short] == lengths[long]:
        return None
    try:
        alone = logits_of(plan.model, plan, [examples[short]])
        beside = logits_of(plan.model, plan, [examples[short], examples[long]])
    except FAILURES:
        return math.inf
    return gap({name: _cut(value[:1], alone[name], plan.processor) for name, value in beside.items()}, alone)


def _cut(padded: Any, alone: Any, tokenizer: Any) -> Any:
    """Take out what stands for padding; outputs for a whole example have none."""
    length = alone.shape[1]
    if padded.shape[1] == length:
        return padded
    return padded[:, -length:] if tokenizer.padding_side == "left" else padded[:, :length]
