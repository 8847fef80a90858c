"""Links: one transform per file, a pure function and the class of that name."""

from rmlora.transforms.add_orthogonality import AddOrthogonality, add_orthogonality
from rmlora.transforms.allocate_budget import AllocateBudget, budget_at
from rmlora.transforms.clip_by_global_norm import ClipByGlobalNorm, clip_by_global_norm
from rmlora.transforms.drop_features import DropFeatures, drop_features
from rmlora.transforms.freeze_head import FreezeHead
from rmlora.transforms.gate_directions import GateDirections, shrink
from rmlora.transforms.mask_directions import MaskDirections, mask_directions

__all__ = [
    "AddOrthogonality",
    "AllocateBudget",
    "ClipByGlobalNorm",
    "DropFeatures",
    "FreezeHead",
    "GateDirections",
    "MaskDirections",
    "add_orthogonality",
    "budget_at",
    "clip_by_global_norm",
    "drop_features",
    "mask_directions",
    "shrink",
]
