"""What the demo does: one frozen recipe, and the methods it compares."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Arm:
    """One line of the comparison.

    Attributes:
        label: as printed.
        method: its name in METHODS.
        r: directions per module; 0 where there is no adapter.
        learning_rate: AdamW's, decayed linearly to 0. Chosen for each arm from the same grid, on other seeds and on
            pool examples outside the test set: benchmarks/2026-11-22_demo_learning_rates.
        knobs: what the method is built with; everything else is its default.
    """

    label: str
    method: str
    r: int
    learning_rate: float
    knobs: dict[str, float] = field(default_factory=dict)


ARMS: tuple[Arm, ...] = (
    Arm("full", "full", 0, 2e-3),
    Arm("LoRA r=4", "lora", 4, 1.6e-2),
    Arm("R-LoRA r=4", "r-lora", 4, 1.6e-2),
    Arm("GM-LoRA 2 of 4", "gm-lora", 4, 1.6e-2, {"directions": 2}),
    Arm("RM-LoRA 2 of 4", "rm-lora", 4, 8e-3, {"directions": 2}),
    Arm("LoRA r=32", "lora", 32, 4e-3),
    Arm("GM-LoRA 4 of 32", "gm-lora", 32, 8e-3, {"directions": 4}),
    Arm("RM-LoRA 4 of 32", "rm-lora", 32, 4e-3, {"directions": 4}),
)

BASELINE = "LoRA r=4"
"""The arm every other one is compared with."""


@dataclass(frozen=True)
class Pretraining:
    """How the base model is made; its cache file is keyed by all of this.

    Attributes:
        hidden_size: width of the ViT.
        num_layers: depth of the ViT.
        num_heads: attention heads.
        patch_size: pixels; the images are 8 x 8.
        num_steps: optimizer steps on digits 0 to 4.
        batch_size: images per step.
        learning_rate: AdamW's, decayed linearly to 0.
        seed: of initial weights and data order.
    """

    hidden_size: int = 64
    num_layers: int = 3
    num_heads: int = 4
    patch_size: int = 2
    num_steps: int = 600
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """How the base model is adapted to digits 5 to 9.

    Attributes:
        pretraining: how the base model is made.
        shots: labelled examples per class; few, so that overfitting is real.
        num_steps: optimizer steps.
        batch_size: images per step.
        scale: s of dW = s B A, the same at every r (lora_alpha = s * r).
        num_evaluations: points of the learning curves.
    """

    pretraining: Pretraining = Pretraining()
    shots: int = 16
    num_steps: int = 200
    batch_size: int = 16
    scale: float = 2.0
    num_evaluations: int = 10


QUICK = Recipe(Pretraining(hidden_size=16, num_layers=1, num_heads=2, num_steps=3), shots=2, num_steps=4)
"""A recipe that shows that everything runs; model and training are so small that no number means much."""
