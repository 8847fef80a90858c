"""METHODS: every method by name, with the laws it obeys. A new method is one file, one row here, one card in docs."""

from __future__ import annotations

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
from rmlora.methods.prilora import prilora
from rmlora.methods.r_lora import r_lora
from rmlora.methods.rac_lora import rac_lora
from rmlora.methods.registry import LAWS, Method
from rmlora.methods.replora import replora
from rmlora.methods.rm_lora import rm_lora
from rmlora.methods.sora import sora
from rmlora.methods.stella import stella
from rmlora.methods.vera import vera

_NO_MASK = {"masked_directions": "it masks nothing"}
_HAS_BLOCKS = "its blocks act in the forward pass, which PEFT's own modules compute"
_NO_ADAPTER = "there is no adapter: every weight of the model learns"

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            "full",
            "full fine-tuning: every weight learns, no adapter",
            lora,
            trains_base=True,
            excluded=dict.fromkeys(LAWS, _NO_ADAPTER),
        ),
        Method("lora", "plain LoRA, the baseline", lora, excluded=_NO_MASK),
        Method(
            "r-lora",
            "LoRA with an orthogonality penalty on A and B",
            r_lora,
            zero={"weight": 0.0},
            excluded=_NO_MASK,
        ),
        Method(
            "gm-lora",
            "LoRA in which a random part of the directions learns at each step",
            gm_lora,
            zero={"directions": 1.0},
        ),
        Method(
            "rm-lora",
            "penalty and mask together (default weight and directions are provisional)",
            rm_lora,
            zero={"weight": 0.0, "directions": 1.0},
        ),
        Method(
            "sora",
            "LoRA with a learnt gate on every direction, shut where a proximal step wins",
            sora,
            excluded=_NO_MASK
            | {
                "zero_strength": "at threshold 0 its gates still learn",
                "fast_path": "its gates act in the forward pass, which PEFT's own modules compute",
            },
        ),
        Method(
            "adalora",
            "PEFT's AdaLoRA driven right: triplets pruned to a budget shared by all modules",
            adalora,
            adapts="ADALORA",
            excluded=_NO_MASK
            | {
                "zero_strength": "its update B E A has three factors, however it is set",
                "fast_path": "PEFT's AdaLoRA layers compute it",
            },
        ),
        Method(
            "lora-dropout",
            "LoRA with random inputs of A and outputs of B left out, one mask per pass, over N instances",
            lora_dropout,
            zero={"p": 0.0},
            excluded=_NO_MASK | {"fast_path": "its masks act in the forward pass, which PEFT's own modules compute"},
        ),
        Method(
            "dylora",
            "LoRA for any rank up to its own: at each step only the first b directions act, b drawn anew",
            dylora,
            zero={"lowest": 1.0},
            excluded={
                "permutation": "it orders directions: the first act at every rank, the last at one only",
                "masked_directions": "its forward pass is not plain LoRA's, so neither are its gradients",
                "fast_path": "its drawn rank acts in the forward pass, which PEFT's own modules compute",
            },
        ),
        Method(
            "lora-plus",
            "LoRA in which B learns faster than A, by a fixed ratio",
            lora_plus,
            zero={"ratio": 1.0},
            excluded=_NO_MASK,
        ),
        Method(
            "vera",
            "PEFT's VeRA: two vectors per module learnt, on random projections shared by all",
            vera,
            adapts="VERA",
            excluded=_NO_MASK
            | {
                "permutation": "its projections are shared by all modules, so no module has directions of its own",
                "zero_strength": "its A and B are shared and frozen, however it is set",
                "fast_path": "PEFT's VeRA layers compute it",
            },
        ),
        Method(
            "delta-lora",
            "LoRA whose frozen weight follows the steps of B A, kept as factors",
            delta_lora,
            zero={"strength": 0.0},
            excluded=_NO_MASK | {"fast_path": _HAS_BLOCKS},
        ),
        Method(
            "clora",
            "LoRA with a penalty that keeps A and B out of random subspaces",
            clora,
            zero={"weight": 0.0},
            excluded=_NO_MASK,
        ),
        Method(
            "lora-rite",
            "LoRA by a step that is the same however the product B A is split into factors",
            lora_rite,
            excluded=_NO_MASK
            | {
                "zero_strength": "it computes the step itself, however it is set",
                "fast_path": "it divides by B, which starts at zero, so rounding grows; its own test starts elsewhere",
            },
        ),
        Method(
            "rac-lora",
            "a chain of blocks, each a random frozen sketch times a factor learnt from zero",
            rac_lora,
            excluded={
                "masked_directions": "it masks one factor of every pair, no direction",
                "permutation": "a sketch is drawn entry by entry, so a direction's depends on its place",
                "zero_strength": "one factor of every pair is random and frozen, however it is set",
                "fast_path": _HAS_BLOCKS,
            },
        ),
        Method(
            "beamlora",
            "LoRA whose weak directions are replaced by copies of strong ones, as learnt gates tell",
            beamlora,
            excluded=_NO_MASK
            | {
                "zero_strength": "its gates learn, however it is set",
                "fast_path": "its gates act in the forward pass, which PEFT's own modules compute",
            },
        ),
        Method(
            "prilora",
            "LoRA whose A is pruned by magnitude and input norm as it learns; ranks may grow with depth",
            prilora,
            zero={"share": 0.0},
            excluded=_NO_MASK
            | {"fast_path": "it measures inputs in the forward pass, which PEFT's own modules compute"},
        ),
        Method(
            "bilora",
            "LoRA with values between A and B that learn from a part of the data A and B never see",
            bilora,
            excluded={
                "zero_strength": "its update B diag(values) A has three factors, however it is set",
                "masked_directions": "it holds A and B still as a whole, at every step of the values",
                "fast_path": "its values act in the forward pass, which PEFT's own modules compute",
            },
        ),
        Method(
            "replora",
            "LoRA whose A and B come out of a small network that the modules of a block share",
            replora,
            excluded=_NO_MASK
            | {
                "zero_strength": "A and B are outputs of a network, however it is set",
                "permutation": "the network's codes are drawn by the direction's place",
            },
        ),
        Method(
            "polar",
            "near orthonormal A and B by a landing field, a learnt matrix between them",
            polar,
            excluded=_NO_MASK
            | {
                "zero_strength": "at weight 0 it still has three factors, and starts from orthonormal ones",
                "fast_path": "its middle factor acts in the forward pass, which PEFT's own modules compute",
            },
        ),
        Method(
            "stella",
            "exactly orthonormal A and B by steps on the Stiefel manifold, a learnt matrix between them",
            stella,
            excluded=_NO_MASK
            | {
                "zero_strength": "it always has three factors, and starts from orthonormal ones",
                "fast_path": "its middle factor acts in the forward pass, which PEFT's own modules compute",
            },
        ),
    )
}
