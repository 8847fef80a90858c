"""Links: one transform per file, a pure function and the class of that name."""

from rmlora.transforms.add_orthogonality import AddOrthogonality, add_orthogonality
from rmlora.transforms.allocate_budget import AllocateBudget, budget_at
from rmlora.transforms.clip_by_global_norm import ClipByGlobalNorm, clip_by_global_norm
from rmlora.transforms.freeze_head import FreezeHead
from rmlora.transforms.gate_directions import GateDirections, shrink
from rmlora.transforms.mask_directions import MaskDirections, mask_directions
from rmlora.transforms.share_projections import ShareProjections

__all__ = [
    "AddOrthogonality",
    "AllocateBudget",
    "ClipByGlobalNorm",
    "FreezeHead",
    "GateDirections",
    "MaskDirections",
    "ShareProjections",
    "add_orthogonality",
    "budget_at",
    "clip_by_global_norm",
    "mask_directions",
    "shrink",
]
