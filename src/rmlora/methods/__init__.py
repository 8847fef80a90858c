"""Methods: nouns that return a chain of links, and METHODS, the table of all of them."""

from rmlora.methods.adalora import adalora
from rmlora.methods.beamlora import beamlora
from rmlora.methods.bilora import bilora
from rmlora.methods.clora import clora
from rmlora.methods.delta_lora import delta_lora
from rmlora.methods.dylora import dylora
from rmlora.methods.gm_lora import gm_lora
from rmlora.methods.lora import lora
from rmlora.methods.lora_dropout import lora_dropout
from rmlora.methods.lora_plus import lora_plus
from rmlora.methods.lora_rite import lora_rite
from rmlora.methods.polar import polar
from rmlora.methods.presets import PRESETS, Preset
from rmlora.methods.prilora import prilora
from rmlora.methods.r_lora import r_lora
from rmlora.methods.rac_lora import rac_lora
from rmlora.methods.registry import LAWS, Method
from rmlora.methods.replora import replora
from rmlora.methods.rm_lora import rm_lora
from rmlora.methods.sora import sora
from rmlora.methods.stella import stella
from rmlora.methods.table import METHODS
from rmlora.methods.vera import vera

__all__ = [
    "LAWS",
    "METHODS",
    "PRESETS",
    "Method",
    "Preset",
    "adalora",
    "beamlora",
    "bilora",
    "clora",
    "delta_lora",
    "dylora",
    "gm_lora",
    "lora",
    "lora_dropout",
    "lora_plus",
    "lora_rite",
    "polar",
    "prilora",
    "r_lora",
    "rac_lora",
    "replora",
    "rm_lora",
    "sora",
    "stella",
    "vera",
]
