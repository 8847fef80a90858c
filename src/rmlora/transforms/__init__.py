"""Links: one transform per file, a pure function and the class of that name."""

from rmlora.transforms.add_orthogonality import AddOrthogonality, add_orthogonality
from rmlora.transforms.allocate_budget import AllocateBudget, budget_at
from rmlora.transforms.alternate_levels import AlternateLevels, is_upper
from rmlora.transforms.avoid_subspaces import AvoidSubspaces, avoid_subspaces
from rmlora.transforms.chain_sketches import ChainSketches, draw_sketch
from rmlora.transforms.clip_by_global_norm import ClipByGlobalNorm, clip_by_global_norm
from rmlora.transforms.draw_rank import DrawRank, draw_rank
from rmlora.transforms.drop_features import DropFeatures, drop_features
from rmlora.transforms.freeze_head import FreezeHead
from rmlora.transforms.gate_directions import GateDirections, shrink
from rmlora.transforms.generate_factors import GenerateFactors, generate_factors
from rmlora.transforms.land_factors import LandFactors, land_factors
from rmlora.transforms.mask_directions import MaskDirections, mask_directions
from rmlora.transforms.mix_directions import MixDirections, mix_directions
from rmlora.transforms.multiply_update import MultiplyUpdate, multiply_update
from rmlora.transforms.precondition_factors import PreconditionFactors, precondition_factors
from rmlora.transforms.propagate_delta import PropagateDelta, propagate_delta
from rmlora.transforms.prune_entries import PruneEntries, prune_entries
from rmlora.transforms.replace_directions import ReplaceDirections, choose_replacements, replace_directions
from rmlora.transforms.retract_factors import RetractFactors, retract_factors
from rmlora.transforms.scale_blocks import ScaleBlocks, normalise_direction
from rmlora.transforms.share_projections import ShareProjections

__all__ = [
    "AddOrthogonality",
    "AllocateBudget",
    "AlternateLevels",
    "AvoidSubspaces",
    "ChainSketches",
    "ClipByGlobalNorm",
    "DrawRank",
    "DropFeatures",
    "FreezeHead",
    "GateDirections",
    "GenerateFactors",
    "LandFactors",
    "MaskDirections",
    "MixDirections",
    "MultiplyUpdate",
    "PreconditionFactors",
    "PropagateDelta",
    "PruneEntries",
    "ReplaceDirections",
    "RetractFactors",
    "ScaleBlocks",
    "ShareProjections",
    "add_orthogonality",
    "avoid_subspaces",
    "budget_at",
    "choose_replacements",
    "clip_by_global_norm",
    "draw_rank",
    "draw_sketch",
    "drop_features",
    "generate_factors",
    "is_upper",
    "land_factors",
    "mask_directions",
    "mix_directions",
    "multiply_update",
    "normalise_direction",
    "precondition_factors",
    "propagate_delta",
    "prune_entries",
    "replace_directions",
    "retract_factors",
    "shrink",
]
