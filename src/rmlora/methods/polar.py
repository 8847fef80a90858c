"""PoLAR: orthonormal A and B that land rather than are projected, and a full matrix between them."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.schedules import Scalar
from rmlora.transforms import LandFactors, MixDirections
from rmlora.transforms.land_factors import Field


def polar(weight: Scalar = 1.0, field: Field = "landing") -> Chain:
    """Return PoLAR: dW = s B S A with A and B near orthonormal, S free and zero at the start.

    Attach to a fresh adapter: A and B begin as orthonormal factors of its own.

    Args:
        weight: of the pull to orthonormality, >= 0, or a schedule; the released scripts have 1.0 for GLUE and 5e-3 for
            LLaMA.
        field: "landing", or "euclidean" for the plain gradient with the same pull, a penalty.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> [type(link).__name__ for link in polar().links]
        ['MixDirections', 'LandFactors']

    Source:
        PoLAR, arXiv:2506.03133. Deviations: see `MixDirections` and `LandFactors`.
    """
    return chain(MixDirections("zeros"), LandFactors(weight=weight, field=field))
