"""LoRA+: plain LoRA with a larger learning rate for B."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.schedules import Scalar
from rmlora.transforms import MultiplyUpdate


def lora_plus(ratio: Scalar = 16.0) -> Chain:
    """Return LoRA+: B learns `ratio` times as fast as A.

    Args:
        ratio: learning rate of B over that of A, > 0, or a schedule; 1 is plain LoRA. The optimizer's own learning rate
            is that of A, and with a large ratio it wants to be smaller than LoRA's.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: the ratio is not positive and finite.

    Example:
        >>> lora_plus(8.0).links
        (MultiplyUpdate(ratio=8.0),)

    Source:
        LoRA+, arXiv:2402.12354. Deviations: see `MultiplyUpdate`.
    """
    return chain(MultiplyUpdate(ratio))
