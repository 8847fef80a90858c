"""RepLoRA: A and B from a small shared network."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.transforms import GenerateFactors


def replora(
    *,
    hidden: int | None = None,
    sharing: str = "block",
    rate: float | None = None,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> Chain:
    """Return RepLoRA: A and B are outputs of a network that modules of a block share; the network is trained.

    Args:
        hidden: width of the network's two layers, >= 1; None is max(4 r, 64).
        sharing: "block", "module", "all", or a regular expression with one group; see `GenerateFactors`.
        rate: learning rate of the network as a multiple of the adapter's, > 0; None is 2 / hidden.
        epsilon: of the network's AdamW, > 0.
        weight_decay: of the network, decoupled, >= 0; the optimizer's own does not reach it.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range.

    Example:
        >>> replora(hidden=32).links[0].hidden
        32

    Source:
        RepLoRA, arXiv:2502.03044. Deviations: see `GenerateFactors`.
    """
    return chain(GenerateFactors(hidden=hidden, sharing=sharing, rate=rate, epsilon=epsilon, weight_decay=weight_decay))
