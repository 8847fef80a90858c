"""Batches of two parts of a training set, in step with a method whose levels learn from one part each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice

import torch
from torch.utils.data import Sampler

from rmlora.combine import chain
from rmlora.draws import hash_scores
from rmlora.errors import MethodError
from rmlora.transform import Transform
from rmlora.transforms.alternate_levels import TWO_PARTS, AlternateLevels, is_upper

_SPLIT, _ORDER = 0, 1


def find_levels(method: Transform) -> AlternateLevels | None:
    """Return the link of a method that needs two parts of the training set; None if none does.

    Example:
        >>> import rmlora
        >>> find_levels(rmlora.bilora(every=3)).every, find_levels(rmlora.lora())
        (3, None)
    """
    links = (getattr(link, "inner", link) for link in chain(method).links)
    return next((link for link in links if isinstance(link, AlternateLevels)), None)


class TwoPartBatches(Sampler[list[int]]):
    """A batch sampler whose every batch is whole of the part that the method's coming step learns from.

    The examples are split once, at random by seed. Each part is read in passes, shuffled anew, that go on from batch to
    batch and from epoch to epoch, so every batch is full; one that ends a pass begins the next. An epoch has as many
    batches as one over all examples. Which examples a batch holds is a function of (seed, epoch, number of the batch):
    no generator is touched, and a resumed run goes on with `set_epoch`.

    Args:
        num_examples: of the training set.
        batch_size: examples per batch.
        method: tells which step is whose, and the share of the second part: `rmlora.bilora()`, or a chain with it.
        batches_per_step: batches between two optimizer steps, over all processes: gradient accumulation times
            processes.
        seed: of split and order.

    Attributes:
        parts: the examples of the first and of the second part, int64.
        epoch: the coming epoch; a finished one counts it up, `set_epoch` sets it.
        provides: what to tell `rmlora.attach`.

    Raises:
        MethodError: the method needs no two parts, a count is below 1, or a part would be empty.

    Example:
        >>> import rmlora
        >>> batches = TwoPartBatches(10, batch_size=2, method=rmlora.bilora(every=2))
        >>> first, second = (set(part.tolist()) for part in batches.parts)
        >>> len(first), len(second)
        (8, 2)
        >>> [set(batch) <= second for batch in batches]
        [False, True, False, True, False]
    """

    provides = frozenset({TWO_PARTS})

    def __init__(
        self, num_examples: int, batch_size: int, method: Transform, *, batches_per_step: int = 1, seed: int = 0
    ) -> None:
        levels = find_levels(method)
        if levels is None:
            raise MethodError("TwoPartBatches is for a method with two levels, such as rmlora.bilora(); got another")
        for name, value in (("batch_size", batch_size), ("batches_per_step", batches_per_step)):
            if value < 1:
                raise MethodError(f"{name}={value}; it must be >= 1")
        size = math.floor(num_examples * levels.share + 0.5)
        if not 0 < size < num_examples:
            raise MethodError(
                f"share={levels.share} of {num_examples} examples leaves {num_examples - size} for A and B and {size} "
                "for the values; both need at least one"
            )
        self.batch_size, self.batches_per_step, self.seed, self.epoch = batch_size, batches_per_step, seed, 0
        self.every = levels.every
        self.num_batches = math.ceil(num_examples / batch_size)
        order = _shuffled(num_examples, seed, _SPLIT)
        self.parts = order[size:].sort().values, order[:size].sort().values

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        epoch, readers = self.epoch, self._readers(self.epoch)
        for number in range(self.num_batches):
            yield list(islice(readers[self.is_second(epoch, number)], self.batch_size))
        self.epoch = epoch + 1

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch

    def is_second(self, epoch: int, number: int) -> bool:
        """Whether a batch is of the second part, that of the values."""
        return is_upper(self._step(epoch, number), self.every)

    def flat(self) -> FlatBatches:
        """Return the same examples one after another, for a trainer that cuts batches of `batch_size` itself."""
        return FlatBatches(self)

    def _step(self, epoch: int, number: int) -> int:
        """The optimizer step that a batch belongs to; the last of an epoch may have fewer batches."""
        return epoch * math.ceil(self.num_batches / self.batches_per_step) + number // self.batches_per_step

    def _readers(self, epoch: int) -> tuple[Iterator[int], Iterator[int]]:
        """The examples of both parts, from where the epochs before this one stopped."""
        second = sum(self.is_second(before, number) for before in range(epoch) for number in range(self.num_batches))
        read = epoch * self.num_batches - second, second
        first, last = (self._passes(part, batches * self.batch_size) for part, batches in enumerate(read))
        return first, last

    def _passes(self, part: int, begin: int) -> Iterator[int]:
        examples = self.parts[part]
        skipped = begin % len(examples)
        for number in count(begin // len(examples)):
            order = _shuffled(len(examples), self.seed, _ORDER, part, number)
            yield from examples[order[skipped:]].tolist()
            skipped = 0


class FlatBatches(Sampler[int]):
    """The examples of a `TwoPartBatches`, one by one."""

    def __init__(self, batches: TwoPartBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches) * self.batches.batch_size

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            yield from batch

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.batches.set_epoch(epoch)


def _shuffled(num: int, *counters: int) -> torch.Tensor:
    """A permutation of `num` examples: the order of their hashes."""
    keys = torch.zeros(1, 2, dtype=torch.int64)
    return hash_scores(keys, num, *counters)[0].argsort(stable=True)
