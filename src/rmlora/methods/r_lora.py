"""R-LoRA: the orthogonality penalty alone."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.methods.presets import PresetName
from rmlora.methods.presets import preset as preset_of
from rmlora.schedules import Scalar
from rmlora.transforms import AddOrthogonality
from rmlora.transforms.add_orthogonality import Gram, Norm, Reduction


def r_lora(
    weight: Scalar | None = None,
    *,
    preset: PresetName = "paper",
    norm: Norm | None = None,
    reduction: Reduction | None = None,
    gram: Gram = "whole",
) -> Chain:
    """Return R-LoRA: LoRA with the rows of A and the columns of B pulled towards orthonormality.

    Args:
        weight: strength of the penalty, >= 0, or a schedule; None takes the preset's (`paper`: 1e-4, provisional).
            Where r is small against the task the penalty can hurt: it also limits the size of the update.
        preset: "paper", "authors" or "strict"; see `docs/methods/rm-lora.md`.
        norm: "squared" or "frobenius"; None takes the preset's.
        reduction: "sum" or "mean"; None takes the preset's.
        gram: "whole", or "off_diagonal" to leave lengths alone.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> r_lora(1e-3).links[0].weight
        0.001

    Source:
        RM-LoRA, arXiv:2407.12074, Eq. 10.
    """
    chosen = preset_of(preset)
    return chain(
        AddOrthogonality(
            weight=chosen.weight if weight is None else weight,
            norm=norm or chosen.norm,
            reduction=reduction or chosen.reduction,
            gram=gram,
        )
    )
