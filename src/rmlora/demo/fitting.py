"""The bare loop: AdamW, a linear decay, and nothing that knows about methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmlora.demo.digits import Examples


def fit(
    model: nn.Module,
    examples: Examples,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train whatever of the model is trainable, in place.

    Args:
        model: returns an object with `.logits` for `pixel_values`.
        examples: what it learns.
        num_steps: optimizer steps, whatever the number of epochs.
        batch_size: images per step; the last batch of an epoch may be smaller.
        learning_rate: AdamW's first; decayed linearly to 0.
        seed: of the data order alone.
        after_step: called with the number of steps done.
    """
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    batches = _batches(len(examples), batch_size, seed)
    for step in range(1, num_steps + 1):
        batch = examples.take(next(batches))
        functional.cross_entropy(model(pixel_values=batch.images).logits, batch.labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
        after_step(step)


@torch.no_grad()
def accuracy(model: nn.Module, examples: Examples) -> float:
    """Return the share of right answers in points, 0 to 100; the model's mode is left as it was."""
    training = model.training
    model.eval()
    right = model(pixel_values=examples.images).logits.argmax(-1) == examples.labels
    model.train(training)
    return 100 * float(right.double().mean())


def _batches(num_examples: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless epochs, each in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num_examples, generator=generator)
        for start in range(0, num_examples, batch_size):
            yield order[start : start + batch_size]
