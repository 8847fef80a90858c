"""RM-LoRA: penalty and mask together."""

from __future__ import annotations

from collections.abc import Callable

from rmlora.combine import Chain, chain
from rmlora.methods.gm_lora import gm_lora
from rmlora.methods.presets import PresetName
from rmlora.methods.r_lora import r_lora
from rmlora.schedules import Scalar
from rmlora.transforms import ClipByGlobalNorm, FreezeHead
from rmlora.transforms.add_orthogonality import Gram, Norm, Reduction
from rmlora.transforms.mask_directions import ActIn, Policy, Sharing


def rm_lora(
    weight: Scalar | None = None,
    directions: int | float | Callable[[int], float] | None = None,
    *,
    preset: PresetName = "paper",
    norm: Norm | None = None,
    reduction: Reduction | None = None,
    gram: Gram = "whole",
    sharing: Sharing | None = None,
    policy: Policy | None = None,
    resample_steps: int = 1,
    mask_first_step: bool | None = None,
    act_in: ActIn | None = None,
    max_norm: float | None = None,
    frozen_head: bool = False,
) -> Chain:
    """Return RM-LoRA: the orthogonality penalty, and a new random set of learning directions at each step.

    Args:
        weight: strength of the penalty, >= 0, or a schedule; None takes the preset's (`paper`: 1e-4, provisional).
        directions: how many directions learn per step: an int is a count, a float in (0, 1] a fraction of r, or a
            schedule; None takes the preset's (half, provisional).
        preset: "paper" (default), "authors" (their released code, without its frozen-head bug) or "strict" (masked
            directions and their optimizer state stay bit-identical).
        norm: "squared" or "frobenius"; None takes the preset's.
        reduction: "sum" or "mean"; None takes the preset's.
        gram: "whole", or "off_diagonal" to leave lengths alone.
        sharing: "shared" or "independent" sets for A and B; None takes the preset's.
        policy: "gradient", "update" or "state"; None takes the preset's.
        resample_steps: optimizer steps between draws, >= 1.
        mask_first_step: whether the first step is masked; None takes the preset's.
        act_in: "backward" or "step"; None takes the preset's.
        max_norm: clip penalty and task gradient together to this norm, > 0, between penalty and mask's step; turn the
            trainer's own clipping off. None does not clip.
        frozen_head: reproduce the bug of the authors' code that stops the head from learning; see `FreezeHead`.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> [type(link).__name__ for link in rm_lora(weight=1e-3, directions=4).links]
        ['AddOrthogonality', 'MaskDirections']

    Source:
        RM-LoRA, arXiv:2407.12074, Eq. 10 and Algorithm 1. Deviations: with `act_in="backward"` the mask acts before
        any clipping; the paper names neither weight nor count.
    """
    penalty = r_lora(weight, preset=preset, norm=norm, reduction=reduction, gram=gram)
    mask = gm_lora(
        directions,
        preset=preset,
        sharing=sharing,
        policy=policy,
        resample_steps=resample_steps,
        mask_first_step=mask_first_step,
        act_in=act_in,
    )
    clip = () if max_norm is None else (ClipByGlobalNorm(max_norm),)
    freeze = (FreezeHead(),) if frozen_head else ()
    return chain(penalty, *clip, mask, *freeze)
