"""LoRA-RITE: a step for A and B that does not depend on how their product is split."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.transforms import PreconditionFactors


def lora_rite(
    *,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-6,
    max_rms: float | None = 1.0,
    max_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    escaped_mass: bool = False,
) -> Chain:
    """Return LoRA-RITE: Adam with matrix moments in bases of A and B, whatever optimizer is stepping.

    Args:
        beta_1: decay of the momentum, in [0, 1).
        beta_2: decay of the second moments, in [0, 1).
        epsilon: added to the roots of the second moments, > 0.
        max_rms: skip a factor's gradient whose unmagnified root mean square is above this, > 0; None never skips.
        max_norm: clip all unmagnified gradients together to this norm, > 0; None does not clip.
        weight_decay: decoupled decay of A and B, >= 0; the optimizer's own does not reach them.
        escaped_mass: keep damping by second moments that left the basis.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range.

    Example:
        >>> lora_rite(weight_decay=0.01).links[0].weight_decay
        0.01

    Source:
        LoRA-RITE, arXiv:2410.20625, and its released code. Deviations: see `PreconditionFactors`.
    """
    return chain(
        PreconditionFactors(
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            max_rms=max_rms,
            max_norm=max_norm,
            weight_decay=weight_decay,
            escaped_mass=escaped_mass,
        )
    )
