"""GM-LoRA: the direction mask alone."""

from __future__ import annotations

from collections.abc import Callable

from rmlora.combine import Chain, chain
from rmlora.methods.presets import PresetName
from rmlora.methods.presets import preset as preset_of
from rmlora.transforms import MaskDirections
from rmlora.transforms.mask_directions import ActIn, Policy, Sharing


def gm_lora(
    directions: int | float | Callable[[int], float] | None = None,
    *,
    preset: PresetName = "paper",
    sharing: Sharing | None = None,
    policy: Policy | None = None,
    resample_steps: int = 1,
    mask_first_step: bool | None = None,
    act_in: ActIn | None = None,
) -> Chain:
    """Return GM-LoRA: LoRA in which only some directions of each module learn at each step.

    Args:
        directions: how many: an int is a count, a float in (0, 1] a fraction of r, or a schedule; None takes the
            preset's (half). Equal to r it is plain LoRA, bit for bit.
        preset: "paper", "authors" or "strict"; see `docs/methods/rm-lora.md`.
        sharing: "shared" or "independent" sets for A and B; None takes the preset's.
        policy: "gradient", "update" or "state": how still a masked direction stays; None takes the preset's.
        resample_steps: optimizer steps between draws, >= 1.
        mask_first_step: whether the first step is masked; None takes the preset's.
        act_in: "backward" or "step" (after the trainer's clipping); None takes the preset's.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> gm_lora(4, policy="update").links[0].directions
        4

    Source:
        RM-LoRA, arXiv:2407.12074, Algorithm 1.
    """
    chosen = preset_of(preset)
    return chain(
        MaskDirections(
            directions=chosen.directions if directions is None else directions,
            sharing=sharing or chosen.sharing,
            policy=policy or chosen.policy,
            resample_steps=resample_steps,
            mask_first_step=chosen.mask_first_step if mask_first_step is None else mask_first_step,
            act_in=act_in or chosen.act_in,
        )
    )
