"""LoRA Dropout: random features of the factors left out of every forward pass, and a loss over several such draws."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.transforms import DropFeatures
from rmlora.transforms.drop_features import Rescale


def lora_dropout(p: float = 0.1, *, rescale: Rescale = "none", instances: int = 1) -> Chain:
    """Return LoRA Dropout: columns of A and rows of B set to zero at random, anew in every forward pass.

    Args:
        p: probability that an input feature of A, or an output feature of B, is left out, 0 <= p < 1; 0 is plain LoRA.
            The paper's values were not found in text; 0.1 is provisional.
        rescale: "none" (masks of zeros and ones, as the paper states them) or "inverted" (each divided by 1 - p).
        instances: how many masks the loss of a batch is averaged over, >= 1; more than one needs
            `rmlora.attach_replicated`, or `rmlora train`. The paper's number was not found in text.

    Returns:
        A method for `rmlora.attach`, or, with several instances, for `rmlora.attach_replicated`.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> lora_dropout(0.5, instances=4).instances
        4

    Source:
        LoRA Dropout, arXiv:2404.09610. Deviations: see `DropFeatures`.
    """
    return chain(DropFeatures(p=p, rescale=rescale, instances=instances))
