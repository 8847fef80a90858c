"""RM-LoRA for any PEFT model and any trainer.

    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"))
    rmlora.attach(model, rmlora.rm_lora(weight=1e-3, directions=4))

Nothing else in the training code changes, and the adapter it leaves is plain LoRA.
"""

from rmlora import schedules
from rmlora.attach import attach, attached
from rmlora.combine import chain
from rmlora.ensemble import Ensemble
from rmlora.errors import RmloraError, RmloraWarning
from rmlora.handle import Attached
from rmlora.methods import METHODS, adalora, gm_lora, lora, lora_dropout, r_lora, rm_lora, sora
from rmlora.peft_config import RMLoraConfig
from rmlora.prune_export import PrunedAdapter, export_pruned
from rmlora.replicate import attach_replicated, repeat_rows
from rmlora.restrict import only
from rmlora.transform import Transform
from rmlora.transforms import (
    AddOrthogonality,
    AllocateBudget,
    ClipByGlobalNorm,
    DropFeatures,
    FreezeHead,
    GateDirections,
    MaskDirections,
)

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "AddOrthogonality",
    "AllocateBudget",
    "Attached",
    "ClipByGlobalNorm",
    "DropFeatures",
    "Ensemble",
    "FreezeHead",
    "GateDirections",
    "MaskDirections",
    "PrunedAdapter",
    "RMLoraConfig",
    "RmloraError",
    "RmloraWarning",
    "Transform",
    "adalora",
    "attach",
    "attach_replicated",
    "attached",
    "chain",
    "export_pruned",
    "gm_lora",
    "lora",
    "lora_dropout",
    "only",
    "r_lora",
    "repeat_rows",
    "rm_lora",
    "schedules",
    "sora",
]
