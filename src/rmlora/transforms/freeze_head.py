"""The authors' frozen head: a bug of the released code, kept apart so that its effect can be measured."""

from __future__ import annotations

from dataclasses import dataclass

from rmlora.transform import Transform


@dataclass(frozen=True)
class FreezeHead(Transform):
    """Link: zero the gradient of everything outside the adapter from the second optimizer step on.

    Never wanted for its own sake: a classifier that learns for one step stays nearly random. As in the released code
    the gradient becomes zero, so momentum and weight decay still move the head.

    Example:
        >>> FreezeHead().freezes_head(step=0), FreezeHead().freezes_head(step=1)
        (False, True)

    Source:
        Public code of the authors (yz-mao/RM-LoRA, January 2025), where a mask filled for LoRA factors only multiplies
        every trainable gradient. The paper does not describe it.
    """

    def hooks(self) -> frozenset[str]:
        """None of the eight: it does not touch pairs."""
        return frozenset()

    def freezes_head(self, step: int) -> bool:
        """True after the first step."""
        return step > 0
