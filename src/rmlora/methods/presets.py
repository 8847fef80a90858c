"""Where paper, authors' code and good practice disagree: three settings of the same links, chosen by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rmlora.errors import MethodError, nearest
from rmlora.transforms.add_orthogonality import Norm, Reduction
from rmlora.transforms.mask_directions import ActIn, Policy, Sharing

PresetName = Literal["paper", "authors", "strict"]


@dataclass(frozen=True)
class Preset:
    """One reading of RM-LoRA; the fields are those of `AddOrthogonality` and `MaskDirections`."""

    weight: float
    norm: Norm
    reduction: Reduction
    directions: int | float
    sharing: Sharing
    policy: Policy
    mask_first_step: bool
    act_in: ActIn


PRESETS: dict[str, Preset] = {
    # The paper gives neither weight nor number of directions: both defaults are provisional, to be set by measurement.
    "paper": Preset(1e-4, "squared", "sum", 0.5, "shared", "gradient", True, "backward"),
    # The released code: version "v1" shares the kept set, as here; "v2" is sharing="independent".
    "authors": Preset(0.1, "frobenius", "mean", 0.5, "shared", "gradient", False, "step"),
    # What "masked" should mean: a masked direction does not move at all.
    "strict": Preset(1e-4, "squared", "sum", 0.5, "shared", "state", True, "backward"),
}


def preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        MethodError: there is none of that name.

    Example:
        >>> preset("authors").norm
        'frobenius'
    """
    if name not in PRESETS:
        raise MethodError(f'preset="{name}" is not one of {sorted(PRESETS)}{nearest(name, list(PRESETS))}')
    return PRESETS[name]
