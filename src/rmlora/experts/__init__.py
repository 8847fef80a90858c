"""Trained LoRA adapters of one base put together: by gates that read the input (MoLE), or merged with equal weights."""

from rmlora.experts.balance import balance_loss
from rmlora.experts.base_identity import Base, identify_base, refuse_other_base
from rmlora.experts.expert import Expert, open_experts
from rmlora.experts.gate import Gate
from rmlora.experts.merging import merge_experts
from rmlora.experts.mixture import Mixture, mix_experts
from rmlora.experts.mixture_file import load_mixture, save_mixture
from rmlora.experts.resting import rest_frozen

__all__ = [
    "Base",
    "Expert",
    "Gate",
    "Mixture",
    "balance_loss",
    "identify_base",
    "load_mixture",
    "merge_experts",
    "mix_experts",
    "open_experts",
    "refuse_other_base",
    "rest_frozen",
    "save_mixture",
]
