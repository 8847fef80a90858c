"""Delta-LoRA: the frozen weight follows the steps of the product B A."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.transforms import PropagateDelta


def delta_lora(strength: float = 0.5, *, start_step: int = 0) -> Chain:
    """Return Delta-LoRA: every step of the product B A acts `1 + strength` times, its gradient once.

    Args:
        strength: lambda, a number >= 0; 0 is plain LoRA, bit for bit.
        start_step: K, optimizer steps of plain LoRA before the second term begins, >= 0.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range.

    Example:
        >>> delta_lora(2.0, start_step=500).links[0].start_step
        500

    Source:
        Delta-LoRA, arXiv:2309.02411. Deviations: see `PropagateDelta`.
    """
    return chain(PropagateDelta(strength=strength, start_step=start_step))
