"""RAC-LoRA: a chain of blocks, each a random frozen sketch times a factor that learns from zero."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.transforms import ChainSketches
from rmlora.transforms.chain_sketches import Side


def rac_lora(side: Side = "left", *, blocks: int = 4, block_steps: int = 1000) -> Chain:
    """Return RAC-LoRA: half of every pair is random and frozen, the other learns; block after block.

    Args:
        side: which factor is the frozen sketch: "left" (B) or "right" (A).
        blocks: length of the chain, >= 1; the saved rank is `blocks * r`. The default is provisional.
        block_steps: optimizer steps of each block, >= 1; the last one trains on. The default is provisional.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> rac_lora("right", blocks=3, block_steps=200).links[0].num_blocks
        3

    Source:
        RAC-LoRA, arXiv:2410.08305. Deviations: see `ChainSketches`.
    """
    return chain(ChainSketches(side=side, num_blocks=blocks, block_steps=block_steps))
