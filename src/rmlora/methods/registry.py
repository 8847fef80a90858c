"""What a row of METHODS says of a method, and the laws it may obey."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

from rmlora.combine import Chain
from rmlora.errors import MethodError, nearest
from rmlora.methods.knobs import build_method

LAWS: dict[str, str] = {
    "zero_strength": "at strength zero it is plain LoRA, bit for bit, dropout on",
    "masked_directions": "exactly the named directions get a gradient, the head keeps its own",
    "plain_export": "the saved adapter gives the same outputs in PEFT alone",
    "resume": "stopping, reloading model and optimizer and going on equals never stopping, bit for bit",
    "accumulation": "it counts optimizer steps, whatever the accumulation",
    "skipped_step": "a step skipped for infinite gradients changes nothing",
    "toy_loss_falls": "a small regression is learnt",
    "bf16_finite": "factors in bfloat16 stay finite",
    "permutation": "directions in another order, drawn and remembered alike, train to the same in that order",
    "fold": "the folded factors in a plain PEFT model give the outputs of the live model",
    "frameworks": "a bare loop, the HF Trainer, Accelerate and Lightning end at the same weights",
    "fast_path": "the fast path trains to the weights of the reference path, with its masks bit for bit",
}
"""Laws by name, each with the sentence that states it.

One test per name: in `tests/test_laws.py`, `tests/test_laws_of_directions.py` and `tests/test_frameworks.py`.
"""


@dataclass(frozen=True)
class Method:
    """A row of METHODS.

    Attributes:
        name: as written on the command line.
        summary: one line.
        function: the method, whose keyword arguments are its knobs.
        zero: knobs that make it plain LoRA.
        adapts: PEFT type of the adapters it trains: LORA, ADALORA (made with `AdaLoraConfig`) or VERA (`VeraConfig`).
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
