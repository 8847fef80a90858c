"""Links: one transform per file, a pure function and the class of that name."""

from rmlora.transforms.add_orthogonality import AddOrthogonality, add_orthogonality
from rmlora.transforms.allocate_budget import AllocateBudget, budget_at
from rmlora.transforms.avoid_subspaces import AvoidSubspaces, avoid_subspaces
from rmlora.transforms.clip_by_global_norm import ClipByGlobalNorm, clip_by_global_norm
from rmlora.transforms.freeze_head import FreezeHead
from rmlora.transforms.gate_directions import GateDirections, shrink
from rmlora.transforms.mask_directions import MaskDirections, mask_directions

__all__ = [
    "AddOrthogonality",
    "AllocateBudget",
    "AvoidSubspaces",
    "ClipByGlobalNorm",
    "FreezeHead",
    "GateDirections",
    "MaskDirections",
    "add_orthogonality",
    "avoid_subspaces",
    "budget_at",
    "clip_by_global_norm",
    "mask_directions",
    "shrink",
]
