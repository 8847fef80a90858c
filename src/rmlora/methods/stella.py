"""StelLA: orthonormal bases of input and output that are learnt on the Stiefel manifold, a full matrix between them."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.transforms import MixDirections, RetractFactors


def stella(width: int = 0) -> Chain:
    """Return StelLA: dW = s U S V^T with orthonormal U = B and V = A^T after every step, S free and at I at the start.

    Attach to a fresh adapter: A and B begin as orthonormal factors of its own, and S at the identity, so dW is not zero
    and outputs change when it is attached.

    Args:
        width: the model's hidden size, by which updates of A and B are scaled: sqrt(width / d) for a side of d
            features; 0 does not scale.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: `width` is not a size.

    Example:
        >>> [type(link).__name__ for link in stella().links]
        ['MixDirections', 'RetractFactors']

    Source:
        StelLA, arXiv:2510.01938. Deviations: see `MixDirections` and `RetractFactors`.
    """
    return chain(MixDirections("identity"), RetractFactors(width))
