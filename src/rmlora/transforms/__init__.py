"""Links: one transform per file, a pure function and the class of that name."""

from rmlora.transforms.add_orthogonality import AddOrthogonality, add_orthogonality
from rmlora.transforms.allocate_budget import AllocateBudget, budget_at
from rmlora.transforms.chain_sketches import ChainSketches, draw_sketch
from rmlora.transforms.clip_by_global_norm import ClipByGlobalNorm, clip_by_global_norm
from rmlora.transforms.freeze_head import FreezeHead
from rmlora.transforms.gate_directions import GateDirections, shrink
from rmlora.transforms.mask_directions import MaskDirections, mask_directions
from rmlora.transforms.propagate_delta import PropagateDelta, propagate_delta

__all__ = [
    "AddOrthogonality",
    "AllocateBudget",
    "ChainSketches",
    "ClipByGlobalNorm",
    "FreezeHead",
    "GateDirections",
    "MaskDirections",
    "PropagateDelta",
    "add_orthogonality",
    "budget_at",
    "clip_by_global_norm",
    "draw_sketch",
    "mask_directions",
    "propagate_delta",
    "shrink",
]
