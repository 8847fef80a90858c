"""How many parameters a run of the classification layer trains, freezes, and leaves in use."""

from __future__ import annotations

from rmlora.heads.layer import Layer
from rmlora.run.plan import Counts


def count_start(layer: Layer, backbone: int) -> Counts:
    """Count parameters by role: `head` is the bias, `base` the weight where it is trained itself.

    Args:
        layer: of the run.
        backbone: parameters of the frozen model in front of it.
    """
    outputs, d_in = layer.W0.shape
    if layer.handle is None:
        return Counts(0, outputs, outputs * d_in, backbone)
    factors = sum(p.numel() for pair in layer.handle.pairs for p in pair.parameters)
    return Counts(factors + layer.handle.num_learnt, outputs, 0, backbone + outputs * d_in)  # learnt: gates


def count_parameters(layer: Layer, backbone: int) -> dict[str, int]:
    """Count parameters by role, and those in use when training is over.

    Args:
        layer: trained.
        backbone: parameters of the frozen model in front of it.

    Returns:
        adapter, head, base, trainable (T), frozen; inference_adapter, entries of the directions left, those with an
        all-zero row of A or column of B not counted, and inference (I), these and whatever else was trained.
    """
    counts, used = count_start(layer, backbone), 0
    if layer.handle is not None:
        A, B, _ = layer.update()
        used = int((A.ne(0).any(1) & B.ne(0).any(0)).sum()) * sum(layer.W0.shape)
    return {
        "adapter": counts.adapter,
        "head": counts.head,
        "base": counts.base,
        "trainable": counts.trainable,
        "inference_adapter": used,
        "inference": used + counts.base + counts.head,
        "frozen": counts.frozen,
    }
