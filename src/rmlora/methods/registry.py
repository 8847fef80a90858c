"""METHODS: every method by name, with the laws it obeys. A new method is one file, one row here, one card in docs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

from rmlora.combine import Chain
from rmlora.errors import MethodError, nearest
from rmlora.methods.adalora import adalora
from rmlora.methods.gm_lora import gm_lora
from rmlora.methods.knobs import build_method
from rmlora.methods.lora import lora
from rmlora.methods.lora_dropout import lora_dropout
from rmlora.methods.r_lora import r_lora
from rmlora.methods.rm_lora import rm_lora
from rmlora.methods.sora import sora

LAWS: dict[str, str] = {
    "zero_strength": "at strength zero it is plain LoRA, bit for bit, dropout on",
    "masked_directions": "exactly the named directions get a gradient, the head keeps its own",
    "plain_export": "the saved adapter gives the same outputs in PEFT alone",
    "resume": "stopping, reloading model and optimizer and going on equals never stopping, bit for bit",
    "accumulation": "it counts optimizer steps, whatever the accumulation",
    "skipped_step": "a step skipped for infinite gradients changes nothing",
    "toy_loss_falls": "a small regression is learnt",
    "bf16_finite": "factors in bfloat16 stay finite",
    "fast_path": "the fast path trains to the weights of the reference path, with its masks bit for bit",
}
"""Laws by name, each with the sentence that states it; `tests/test_laws.py` holds one test per name."""


@dataclass(frozen=True)
class Method:
    """A row of METHODS.

    Attributes:
        name: as written on the command line.
        summary: one line.
        function: the method, whose keyword arguments are its knobs.
        zero: knobs that make it plain LoRA.
        adapts: PEFT type of the adapters it trains: LORA, or ADALORA for a model made with `AdaLoraConfig`.
        trains_base: True where there is no adapter and every weight of the model learns.
        excluded: laws that do not apply, each with the reason.
    """

    name: str
    summary: str
    function: Callable[..., Chain]
    zero: dict[str, float] = field(default_factory=dict)
    adapts: str = "LORA"
    trains_base: bool = False
    excluded: dict[str, str] = field(default_factory=dict)

    @property
    def knobs(self) -> tuple[str, ...]:
        """Names of the keyword arguments `build` accepts."""
        return tuple(inspect.signature(self.function).parameters)

    def build(self, **knobs: object) -> Chain:
        """Return the method with these knobs.

        Raises:
            MethodError: a knob is unknown, or its value of the wrong type or out of range.
        """
        for name in knobs:
            if name not in self.knobs:
                known = ", ".join(self.knobs) or "none"
                raise MethodError(
                    f'method {self.name} has no knob "{name}"{nearest(name, list(self.knobs))}; it has: {known}'
                )
        return build_method(self.name, self.function, knobs)


_NO_MASK = {"masked_directions": "it masks nothing"}
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
            "lora-dropout",
            "LoRA with random inputs of A and outputs of B left out, one mask per pass, over N instances",
            lora_dropout,
            zero={"p": 0.0},
            excluded=_NO_MASK | {"fast_path": "its masks act in the forward pass, which PEFT's own modules compute"},
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
    )
}
