"""PRILoRA: A pruned by magnitude and input norm while it learns; its growing ranks are `linear_ranks`."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.schedules import Scalar
from rmlora.transforms import PruneEntries
from rmlora.transforms.prune_entries import Within


def prilora(
    share: Scalar = 0.5, *, interval: int = 40, decay: float = 0.9, within: Within = "row", regrow: bool = True
) -> Chain:
    """Return PRILoRA's pruning. The other half, ranks that grow with depth, is a matter of the PEFT configuration.

    Args:
        share: of A's entries that a pruning zeroes, in [0, 1), or a schedule; 0 is plain LoRA.
        interval: optimizer steps between prunings, >= 1.
        decay: of the running mean of input norms, in [0, 1).
        within: "row" or "matrix": of what the share is pruned.
        regrow: whether pruned entries learn between prunings; False keeps them at zero.

    Returns:
        A method for `rmlora.attach`; see `rmlora.linear_ranks` for the ranks.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> prilora(0.25).links[0].share
        0.25

    Source:
        PRILoRA, arXiv:2401.11316. The defaults are ours; see `PruneEntries`.
    """
    return chain(PruneEntries(share=share, interval=interval, decay=decay, within=within, regrow=regrow))
