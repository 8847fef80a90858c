"""Methods: nouns that return a chain of links, and METHODS, the table of all of them."""

from rmlora.methods.adalora import adalora
from rmlora.methods.gm_lora import gm_lora
from rmlora.methods.lora import lora
from rmlora.methods.lora_dropout import lora_dropout
from rmlora.methods.presets import PRESETS, Preset
from rmlora.methods.r_lora import r_lora
from rmlora.methods.registry import LAWS, METHODS, Method
from rmlora.methods.rm_lora import rm_lora
from rmlora.methods.sora import sora

__all__ = [
    "LAWS",
    "METHODS",
    "PRESETS",
    "Method",
    "Preset",
    "adalora",
    "gm_lora",
    "lora",
    "lora_dropout",
    "r_lora",
    "rm_lora",
    "sora",
]
