"""RM-LoRA for any PEFT model and any trainer."""

from rmlora.combine import chain, only
from rmlora.methods import METHODS, gm_lora, lora, r_lora, rm_lora
from rmlora.transforms import AddOrthogonality, ClipByGlobalNorm, FreezeHead, MaskDirections

__all__ = [
    "METHODS",
    "AddOrthogonality",
    "ClipByGlobalNorm",
    "FreezeHead",
    "MaskDirections",
    "chain",
    "gm_lora",
    "lora",
    "only",
    "r_lora",
    "rm_lora",
]
