"""Links: one transform per file, a pure function and the class of that name."""

from rmlora.transforms.add_orthogonality import AddOrthogonality, add_orthogonality
from rmlora.transforms.allocate_budget import AllocateBudget, budget_at
from rmlora.transforms.alternate_levels import AlternateLevels, is_upper
from rmlora.transforms.clip_by_global_norm import ClipByGlobalNorm, clip_by_global_norm
from rmlora.transforms.draw_rank import DrawRank, draw_rank
from rmlora.transforms.freeze_head import FreezeHead
from rmlora.transforms.gate_directions import GateDirections, shrink
from rmlora.transforms.mask_directions import MaskDirections, mask_directions
from rmlora.transforms.multiply_update import MultiplyUpdate, multiply_update
from rmlora.transforms.replace_directions import ReplaceDirections, choose_replacements, replace_directions

__all__ = [
    "AddOrthogonality",
    "AllocateBudget",
    "AlternateLevels",
    "ClipByGlobalNorm",
    "DrawRank",
    "FreezeHead",
    "GateDirections",
    "MaskDirections",
    "MultiplyUpdate",
    "ReplaceDirections",
    "add_orthogonality",
    "budget_at",
    "choose_replacements",
    "clip_by_global_norm",
    "draw_rank",
    "is_upper",
    "mask_directions",
    "multiply_update",
    "replace_directions",
    "shrink",
]
