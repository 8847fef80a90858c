"""Plain LoRA: the chain with no links."""

from rmlora.combine import Chain, chain


def lora() -> Chain:
    """Return plain LoRA, the baseline: attaching it changes nothing.

    Example:
        >>> lora().links
        ()

    Source:
        LoRA, arXiv:2106.09685, as PEFT implements it.
    """
    return chain()
