"""One run: the base model adapted to digits 5 to 9 by one method with one seed, and what came out."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.analysis.gram import penalty
from rmlora.analysis.orthogonality import orthogonality_excess
from rmlora.analysis.spectra import effective_rank, singular_values, stable_rank
from rmlora.attach import attach
from rmlora.demo.digits import Digits, draw
from rmlora.demo.fitting import accuracy, fit
from rmlora.demo.recipe import Arm, Recipe
from rmlora.methods import METHODS
from rmlora.pairs import Factors, Pair

HEAD = "classifier"


@dataclass(frozen=True)
class Update:
    """What one module learnt: dW = scale * B A."""

    A: Tensor
    B: Tensor
    scale: float


@dataclass(frozen=True)
class Outcome:
    """One run, as it is written to rows.jsonl.

    Attributes:
        label: the arm.
        method: its method.
        r: directions per module; 0 without an adapter.
        knobs: what the method was built with beside its defaults.
        learning_rate: AdamW's first.
        seed: of the labelled examples, the head, the adapter, the data order and the masks.
        trainable_parameters: head included.
        train_accuracy: on the labelled examples after the last step, in points.
        test_accuracy: on the test examples after the last step, in points.
        effective_rank: of dW, mean over modules.
        stable_rank: of dW, mean over modules.
        orthogonality_excess: ||dW dW^T - I||_F^2 above its floor, mean over modules.
        gram_residual: ||A A^T - I||_F^2 + ||B^T B - I||_F^2, mean over modules; None without an adapter.
        curve: step, train and test accuracy along the way.
        seconds: wall-clock time of the run.
    """

    label: str
    method: str
    r: int
    knobs: dict[str, float]
    learning_rate: float
    seed: int
    trainable_parameters: int
    train_accuracy: float
    test_accuracy: float
    effective_rank: float
    stable_rank: float
    orthogonality_excess: float
    gram_residual: float | None
    curve: tuple[tuple[int, float, float], ...]
    seconds: float

    @property
    def gap(self) -> float:
        """Train accuracy minus test accuracy, in points."""
        return self.train_accuracy - self.test_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON would hold it."""
        return asdict(self) | {"gap": self.gap}


def adapt(
    base: nn.Module,
    digits: Digits,
    recipe: Recipe,
    arm: Arm,
    seed: int,
    after_step: Callable[[int], None] = lambda step: None,
) -> Outcome:
    """Adapt a copy of the base model; the base itself is left alone.

    Every method with the same seed sees the same labelled examples in the same order and starts from the same head,
    and from the same adapter where r is the same: differences between them are paired.

    Args:
        base: the pre-trained model.
        digits: the data.
        recipe: steps, shots, scale.
        arm: the method.
        seed: of everything that is drawn.
        after_step: called with the number of steps done.
    """
    started = time.perf_counter()
    few = draw(digits.pool, recipe.shots, seed)
    model, pairs = prepare(base, recipe, arm, seed)
    curve: list[tuple[int, float, float]] = []
    stride = max(1, recipe.num_steps // recipe.num_evaluations)

    def watch(step: int) -> None:
        if step % stride == 0 or step == recipe.num_steps:
            curve.append((step, accuracy(model, few), accuracy(model, digits.test)))
        after_step(step)

    fit(
        model,
        few,
        num_steps=recipe.num_steps,
        batch_size=recipe.batch_size,
        learning_rate=arm.learning_rate,
        seed=seed,
        after_step=watch,
    )
    updates = _differences(model, base) if not pairs else [Update(p.A, p.B, p.scale) for p in pairs]
    return _outcome(arm, seed, model, updates, curve, has_adapter=bool(pairs), seconds=time.perf_counter() - started)


def prepare(base: nn.Module, recipe: Recipe, arm: Arm, seed: int) -> tuple[nn.Module, tuple[Pair, ...]]:
    """Copy the base model, give it a new head, and attach the method.

    Returns:
        The model to train and its factor pairs; none where the base itself is trained.
    """
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(base)
    torch.manual_seed(seed)
    head = model.get_submodule(HEAD)
    nn.init.normal_(head.weight, std=0.02)  # type: ignore[arg-type]
    nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    method = METHODS[arm.method]
    if method.trains_base:
        return model, ()
    config = LoraConfig(
        r=arm.r, lora_alpha=recipe.scale * arm.r, target_modules=_projections(model), modules_to_save=[HEAD]
    )
    adapted: nn.Module = get_peft_model(model, config)
    return adapted, attach(adapted, method.build(**arm.knobs), seed=seed).pairs


def _projections(model: nn.Module) -> list[str]:
    """All linear layers but the head: the names differ between versions of transformers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != HEAD]


def _differences(model: nn.Module, base: nn.Module) -> list[Update]:
    """What full fine-tuning changed, written as factors so that one code measures all: dW = dW I."""
    updates = []
    for name in _projections(base):
        dW = model.get_submodule(name).weight.detach() - base.get_submodule(name).weight.detach()  # type: ignore[operator]
        updates.append(Update(torch.eye(dW.shape[1]), dW, 1.0))
    return updates


def _outcome(
    arm: Arm,
    seed: int,
    model: nn.Module,
    updates: list[Update],
    curve: list[tuple[int, float, float]],
    *,
    has_adapter: bool,
    seconds: float,
) -> Outcome:
    measured = _measure(updates)
    return Outcome(
        label=arm.label,
        method=arm.method,
        r=arm.r,
        knobs=dict(arm.knobs),
        learning_rate=arm.learning_rate,
        seed=seed,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        train_accuracy=curve[-1][1],
        test_accuracy=curve[-1][2],
        effective_rank=measured["effective_rank"],
        stable_rank=measured["stable_rank"],
        orthogonality_excess=measured["orthogonality_excess"],
        gram_residual=measured["gram_residual"] if has_adapter else None,
        curve=tuple(curve),
        seconds=seconds,
    )


def _measure(updates: Iterable[Update]) -> dict[str, float]:
    """Mean over modules of what is read off each dW."""
    by_shape: dict[tuple[torch.Size, torch.Size], list[Update]] = defaultdict(list)
    for update in updates:
        by_shape[update.A.shape, update.B.shape].append(update)
    values: dict[str, list[float]] = defaultdict(list)
    for stack in by_shape.values():
        factors = Factors(torch.stack([u.A.detach() for u in stack]), torch.stack([u.B.detach() for u in stack]))
        sigma = singular_values(factors, torch.tensor([u.scale for u in stack]))
        values["effective_rank"] += effective_rank(sigma).tolist()
        values["stable_rank"] += stable_rank(sigma).tolist()
        values["orthogonality_excess"] += orthogonality_excess(sigma).tolist()
        values["gram_residual"] += penalty(factors).tolist()
    return {name: fmean(each) for name, each in values.items()}
