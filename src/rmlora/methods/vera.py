"""VeRA, on PEFT's implementation."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.transforms import ShareProjections


def vera(
    r: int | None = None,
    *,
    d_initial: float | None = None,
    projection_prng_key: int | None = None,
    save_projection: bool | None = None,
) -> Chain:
    """Return VeRA: random projections shared by all modules and frozen, two vectors learnt for each module.

    For a model made with `peft.VeraConfig`; `rmlora train method=vera` makes it. Far fewer parameters than LoRA at the
    same r, so r is chosen larger (PEFT's default is 256), and so is the learning rate.

    Args:
        r: rows of the shared A, >= 1; None: `lora.r` of the run.
        d_initial: first value of every d, > 0; None: 0.1. The vectors b begin with 0.
        projection_prng_key: seed of the projections, >= 0; None: 0.
        save_projection: whether the adapter holds the projections; None: True. Without them, loading draws them anew
            from the key, which PEFT does not promise to be equal on every system.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range, or when attached differs from the model's.

    Example:
        >>> vera(r=256).adapts
        'VERA'

    Source:
        VeRA, arXiv:2310.11454, as PEFT implements it. Deviations: none of ours.
    """
    return chain(
        ShareProjections(
            r=r, d_initial=d_initial, projection_prng_key=projection_prng_key, save_projection=save_projection
        )
    )
