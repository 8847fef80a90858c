"""Links: one transform per file, a pure function and the class of that name."""

from rmlora.transforms.add_orthogonality import AddOrthogonality, add_orthogonality
from rmlora.transforms.clip_by_global_norm import ClipByGlobalNorm, clip_by_global_norm
from rmlora.transforms.freeze_head import FreezeHead
from rmlora.transforms.gate_directions import GateDirections, shrink
from rmlora.transforms.mask_directions import MaskDirections, mask_directions

__all__ = [
    "AddOrthogonality",
    "ClipByGlobalNorm",
    "FreezeHead",
    "GateDirections",
    "MaskDirections",
    "add_orthogonality",
    "clip_by_global_norm",
    "mask_directions",
    "shrink",
]
