"""DyLoRA: one adapter that can be used at any rank up to its own."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.transforms import DrawRank
from rmlora.transforms.mask_directions import Policy


def dylora(lowest: int | float = 1, *, frozen: bool = False, policy: Policy = "update") -> Chain:
    """Return DyLoRA: LoRA whose directions are ordered by training, so that its first b are an adapter of rank b.

    Args:
        lowest: the lowest rank drawn: an int >= 1, or a float in (0, 1], a fraction of the largest rank; 1.0 draws none
            and is, unless `frozen`, plain LoRA.
        frozen: whether only direction b learns at a step that drew b, and those below it merely act.
        policy: "update" keeps directions without gradient where they are, "state" their moments too, "gradient" lets
            momentum and weight decay move them.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> dylora(frozen=True).links[0].frozen
        True

    Source:
        DyLoRA, arXiv:2210.07558. Deviations: see `DrawRank`.
    """
    return chain(DrawRank(lowest, frozen, policy))
