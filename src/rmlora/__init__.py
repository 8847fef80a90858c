"""RM-LoRA for any PEFT model and any trainer.

    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"))
    rmlora.attach(model, rmlora.rm_lora(weight=1e-3, directions=4))

Nothing else in the training code changes, and the adapter it leaves is plain LoRA.
"""

from rmlora import schedules
from rmlora.attach import attach, attached
from rmlora.axes import MaskedAxes, mask_axes
from rmlora.combine import chain
from rmlora.ensemble import Ensemble
from rmlora.errors import RmloraError, RmloraWarning
from rmlora.experts import Mixture, load_mixture, merge_experts, mix_experts, open_experts
from rmlora.handle import Attached
from rmlora.leading_export import export_leading
from rmlora.linear_ranks import linear_ranks
from rmlora.methods import (
    METHODS,
    adalora,
    beamlora,
    bilora,
    clora,
    delta_lora,
    dylora,
    gm_lora,
    lora,
    lora_dropout,
    lora_plus,
    lora_rite,
    polar,
    prilora,
    r_lora,
    rac_lora,
    replora,
    rm_lora,
    sora,
    stella,
    vera,
)
from rmlora.peft_config import RMLoraConfig
from rmlora.prune_export import PrunedAdapter, export_pruned
from rmlora.replicate import attach_replicated, repeat_rows
from rmlora.restrict import only
from rmlora.transform import Transform
from rmlora.transforms import (
    AddOrthogonality,
    AllocateBudget,
    AlternateLevels,
    AvoidSubspaces,
    ChainSketches,
    ClipByGlobalNorm,
    DrawRank,
    DropFeatures,
    FreezeHead,
    GateDirections,
    GenerateFactors,
    LandFactors,
    MaskDirections,
    MixDirections,
    MultiplyUpdate,
    PreconditionFactors,
    PropagateDelta,
    PruneEntries,
    ReplaceDirections,
    RetractFactors,
    ScaleBlocks,
    ShareProjections,
)
from rmlora.truncated_export import TruncatedAdapter, export_truncated
from rmlora.two_parts import TwoPartBatches

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "AddOrthogonality",
    "AllocateBudget",
    "AlternateLevels",
    "Attached",
    "AvoidSubspaces",
    "ChainSketches",
    "ClipByGlobalNorm",
    "DrawRank",
    "DropFeatures",
    "Ensemble",
    "FreezeHead",
    "GateDirections",
    "GenerateFactors",
    "LandFactors",
    "MaskDirections",
    "MaskedAxes",
    "MixDirections",
    "Mixture",
    "MultiplyUpdate",
    "PreconditionFactors",
    "PropagateDelta",
    "PruneEntries",
    "PrunedAdapter",
    "RMLoraConfig",
    "ReplaceDirections",
    "RetractFactors",
    "RmloraError",
    "RmloraWarning",
    "ScaleBlocks",
    "ShareProjections",
    "Transform",
    "TruncatedAdapter",
    "TwoPartBatches",
    "adalora",
    "attach",
    "attach_replicated",
    "attached",
    "beamlora",
    "bilora",
    "chain",
    "clora",
    "delta_lora",
    "dylora",
    "export_leading",
    "export_pruned",
    "export_truncated",
    "gm_lora",
    "linear_ranks",
    "load_mixture",
    "lora",
    "lora_dropout",
    "lora_plus",
    "lora_rite",
    "mask_axes",
    "merge_experts",
    "mix_experts",
    "only",
    "open_experts",
    "polar",
    "prilora",
    "r_lora",
    "rac_lora",
    "repeat_rows",
    "replora",
    "rm_lora",
    "schedules",
    "sora",
    "stella",
    "vera",
]
