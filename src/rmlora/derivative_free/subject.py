"""What is searched for: a model with its classifier fitted, and the loss of a candidate on the training examples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rmlora.derivative_free.classifier import find_classifier, fit_classifier
from rmlora.derivative_free.objective import (
    Batch,
    factor_shapes,
    features_of,
    labels_of,
    loss_of,
    read_batches,
    run_model,
    write_factors,
)
from rmlora.derivative_free.projections import FactorPairs, Shapes, project_blocks
from rmlora.run.plan import Plan
from rmlora.tasks.encode import head_of


@dataclass(frozen=True, eq=False)
class Subject:
    """A run, ready to be searched.

    Attributes:
        plan: its model's classifier is fitted.
        parts: batches of "train" (what candidates are judged by), "eval" and the task's other held-out parts; and
            "seen", training examples the gap is measured on, if any.
        shapes: of the factors.
    """

    plan: Plan
    parts: dict[str, list[Batch]]
    shapes: Shapes

    def loss(self, factors: FactorPairs) -> float:
        """Write factors into the model and return the loss on the training examples."""
        write_factors(self.plan.pairs, factors)
        return loss_of(self.plan.model, self.parts["train"])

    def write(self, factors: FactorPairs) -> None:
        """Write factors into the model."""
        write_factors(self.plan.pairs, factors)

    def answers(self, part: str) -> tuple[Tensor, Tensor]:
        """Return outputs and labels of a part, on the CPU."""
        batches = self.parts[part]
        return run_model(self.plan.model, batches).cpu(), labels_of(batches).cpu()

    def wording(self) -> str:
        """Say what is searched for and at what cost."""
        settings = self.plan.config.derivative_free
        blocks = project_blocks(self.shapes, settings.dimension, settings.spread, 0)
        numbers = ", ".join(sorted({str(block.dimension) for block in blocks}))
        return (
            f"CMA-ES: {len(blocks)} blocks of {numbers} numbers, {settings.evaluations} candidates, each a pass over "
            f"{len(self.plan.data.train)} examples"
        )


def make_subject(plan: Plan) -> Subject:
    """Fit the classifier of a plan's model, in place, and pad its examples.

    Args:
        plan: its adapter starts at B = 0, so that the model is the frozen one.

    Raises:
        ConfigError: the model has no such layer, or the data or the adapted modules will not do.
    """
    config, device = plan.config, _device()
    plan.model.to(device)
    pad: Any = partial(read_batches, processor=plan.processor, config=config, device=device)
    parts = {"train": pad(plan.encoded["train"], any_order=True)}
    parts |= {name: pad(plan.encoded[name]) for name in ("eval", *plan.data.others)}
    count = config.training.train_eval_examples
    if count:
        parts["seen"] = pad(head_of(plan.encoded["train"], count, config.training.seed))
    outputs = 1 if plan.data.classes is None else len(plan.data.classes)
    layer = find_classifier(plan.model, outputs)
    shapes = factor_shapes(plan.pairs)
    write_factors(plan.pairs, {name: (torch.zeros(a), torch.zeros(b)) for name, (a, b) in shapes.items()})
    features = features_of(layer, plan.model, parts["train"])
    fit_classifier(layer, features, labels_of(parts["train"]), config.derivative_free.head_strength)
    return Subject(plan, parts, shapes)


def _device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
