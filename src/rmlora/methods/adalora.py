"""AdaLoRA, on PEFT's implementation, driven right."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.transforms import AllocateBudget


def adalora(
    total_steps: int | None = None,
    target_r: int | None = None,
    *,
    initial_steps: int | None = None,
    final_steps: int | None = None,
    interval: int | None = None,
    weight: float | None = None,
    beta1: float | None = None,
    beta2: float | None = None,
) -> Chain:
    """Return AdaLoRA: triplets in place of directions, pruned during training to a budget shared by all modules.

    For a model made with `peft.AdaLoraConfig`, whose values hold for what is left open here.

    Args:
        total_steps: optimizer steps of the whole training, >= 1 (`total_step`).
        target_r: mean rank per module to end with, 1 to init_r.
        initial_steps: steps before pruning begins, >= 0 (`tinit`).
        final_steps: steps at the end without further pruning, >= 0 (`tfinal`).
        interval: optimizer steps between prunings, >= 1 (`deltaT`).
        weight: strength of the orthogonality penalty, >= 0 (`orth_reg_weight`; PEFT's default is 0.5, the paper's 0.1).
        beta1: smoothing of importance, in (0, 1).
        beta2: smoothing of its uncertainty, in (0, 1).

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range.

    Example:
        >>> adalora(total_steps=1000, target_r=4).adapts
        'ADALORA'

    Source:
        AdaLoRA, arXiv:2303.10512, as PEFT implements it. Deviations: see `AllocateBudget`.
    """
    return chain(
        AllocateBudget(
            total_steps=total_steps,
            target_r=target_r,
            initial_steps=initial_steps,
            final_steps=final_steps,
            interval=interval,
            weight=weight,
            beta1=beta1,
            beta2=beta2,
        )
    )
