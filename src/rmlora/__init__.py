"""RM-LoRA for any PEFT model and any trainer.

    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"))
    rmlora.attach(model, rmlora.rm_lora(weight=1e-3, directions=4))

Nothing else in the training code changes, and the adapter it leaves is plain LoRA.
"""

from rmlora import schedules
from rmlora.attach import attach, attached
from rmlora.combine import chain
from rmlora.errors import RmloraError, RmloraWarning
from rmlora.handle import Attached
from rmlora.linear_ranks import linear_ranks
from rmlora.methods import (
    METHODS,
    adalora,
    clora,
    gm_lora,
    lora,
    lora_rite,
    polar,
    prilora,
    r_lora,
    replora,
    rm_lora,
    sora,
    stella,
)
from rmlora.peft_config import RMLoraConfig
from rmlora.prune_export import PrunedAdapter, export_pruned
from rmlora.restrict import only
from rmlora.transform import Transform
from rmlora.transforms import (
    AddOrthogonality,
    AllocateBudget,
    AvoidSubspaces,
    ClipByGlobalNorm,
    FreezeHead,
    GateDirections,
    GenerateFactors,
    LandFactors,
    MaskDirections,
    MixDirections,
    PreconditionFactors,
    PruneEntries,
    RetractFactors,
)

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "AddOrthogonality",
    "AllocateBudget",
    "Attached",
    "AvoidSubspaces",
    "ClipByGlobalNorm",
    "FreezeHead",
    "GateDirections",
    "GenerateFactors",
    "LandFactors",
    "MaskDirections",
    "MixDirections",
    "PreconditionFactors",
    "PruneEntries",
    "PrunedAdapter",
    "RMLoraConfig",
    "RetractFactors",
    "RmloraError",
    "RmloraWarning",
    "Transform",
    "adalora",
    "attach",
    "attached",
    "chain",
    "clora",
    "export_pruned",
    "gm_lora",
    "linear_ranks",
    "lora",
    "lora_rite",
    "only",
    "polar",
    "prilora",
    "r_lora",
    "replora",
    "rm_lora",
    "schedules",
    "sora",
    "stella",
]
