"""CLoRA: LoRA kept out of random subspaces of each layer's inputs and outputs."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.schedules import Scalar
from rmlora.transforms import AvoidSubspaces


def clora(weight: Scalar = 1.0, dimensions: int = 128) -> Chain:
    """Return CLoRA: LoRA with a penalty on what A and B do inside fixed random subspaces, against forgetting.

    Args:
        weight: strength of the penalty, >= 0, or a schedule; 0 is plain LoRA.
        dimensions: of each subspace, an int >= 1. The larger, the less the update can change; at a layer's width or
            above, the penalty is plain L2 on the factor.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range.

    Example:
        >>> clora(dimensions=256).links[0].weight
        1.0

    Source:
        CLoRA, arXiv:2410.16801. Deviations: see `avoid_subspaces`.
    """
    return chain(AvoidSubspaces(weight=weight, dimensions=dimensions))
