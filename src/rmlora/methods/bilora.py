"""BiLoRA: factors and the values between them learn from different examples."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.schedules import Scalar
from rmlora.transforms import AlternateLevels


def bilora(weight: Scalar = 0.1, *, every: int = 2, share: float = 0.2) -> Chain:
    """Return BiLoRA: LoRA with values between A and B that learn from a part of the data A and B never see.

    It cannot merely be attached: batches of either part have to come in step with it. `rmlora train` sees to that, and
    `rmlora.TwoPartBatches` in your own loop.

    Args:
        weight: strength of the orthogonality penalty on A and B, >= 0, or a schedule; 0 adds none.
        every: one optimizer step in so many moves the values, the others A and B; >= 2.
        share: share of the training examples that the values learn from, in (0, 1).

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range.

    Example:
        >>> bilora(every=5).links[0].every
        5

    Source:
        BiLoRA, arXiv:2403.13037. Deviations: see `AlternateLevels`.
    """
    return chain(AlternateLevels(weight, every, share))
