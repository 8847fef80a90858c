"""The bare loop: batches of features, AdamW, a schedule, and nothing that knows about methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmlora.config import TrainingConfig
from rmlora.run.divergence import check_step
from rmlora.tasks.data import TaskData

_LOWER = "lower training.lr, and start again with --overwrite"


@dataclass(frozen=True)
class Part:
    """Inputs and labels of one part of the data.

    Attributes:
        features: `(n, d)`.
        labels: `(n,)` class ids, or numbers of a regression.
    """

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Part:
        """Return some of it."""
        return Part(self.features.index_select(0, indices), self.labels.index_select(0, indices))


def batch_order(examples: int, batch_size: int, epochs: int, seed: int) -> Iterator[list[Tensor]]:
    """Yield for each epoch its batches of indices: every example once, in an order drawn from the seed alone.

    Example:
        >>> [[len(batch) for batch in epoch] for epoch in batch_order(5, 2, epochs=2, seed=0)]
        [[2, 2, 1], [2, 2, 1]]
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(examples, generator=generator)
        yield [order[start : start + batch_size] for start in range(0, examples, batch_size)]


def task_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, or the mean squared error where labels are not class ids."""
    if labels.is_floating_point():
        return functional.mse_loss(outputs.squeeze(-1), labels)
    return functional.cross_entropy(outputs, labels)


def fit(
    model: nn.Module,
    train: Part,
    training: TrainingConfig,
    after_epoch: Callable[[int, int, float], None],
    around_step: Callable[[], AbstractContextManager[None]] = nullcontext,
    made: Callable[[torch.optim.Optimizer], None] = lambda optimizer: None,
) -> None:
    """Train what of a model is trainable, in place.

    Args:
        model: from features to outputs.
        train: what it learns.
        training: epochs, lr, batch_size, weight_decay, max_grad_norm, lr_scheduler, warmup_steps, seed.
        after_epoch: called with the epoch, the steps so far and the mean loss over the epoch's examples.
        around_step: a context in which each optimizer step is taken.
        made: given the optimizer before the first step.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=float(training.lr or 0), weight_decay=training.weight_decay)
    made(optimizer)
    epochs = list(batch_order(len(train), training.batch_size, training.epochs, training.seed))
    schedule = _schedule(optimizer, training, sum(map(len, epochs)))
    steps = 0
    for epoch, batches in enumerate(epochs, 1):
        model.train()
        total = torch.zeros((), device=train.features.device)
        for indices in batches:
            batch = train.take(indices)
            loss = task_loss(model(batch.features), batch.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            check_step(loss, model, True, f"at step {steps + 1}", lambda: _LOWER)
            if training.max_grad_norm:
                nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
            with around_step():
                optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += loss.detach() * len(batch)
            steps += 1
        model.eval()
        after_epoch(epoch, steps, float(total) / len(train))


def make_part(features: Tensor, labels: list[Any], data: TaskData, device: torch.device) -> Part:
    """Put features and labels of one part on a device."""
    dtype = torch.float32 if data.classes is None else torch.long
    return Part(features.to(device), torch.tensor(labels, dtype=dtype, device=device))


def _schedule(optimizer: torch.optim.Optimizer, training: TrainingConfig, steps: int) -> Any:
    from transformers import get_scheduler

    warm = training.warmup_steps
    warm = round(warm * steps) if warm < 1 else int(warm)
    return get_scheduler(training.lr_scheduler, optimizer, num_warmup_steps=warm, num_training_steps=steps)
