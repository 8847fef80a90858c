"""The data: 1797 handwritten digits that come with scikit-learn, split into two problems."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_CLASSES = 5
_POOL_SIZE = 270
_SPLIT_SEED = 1234


@dataclass(frozen=True)
class Examples:
    """Images and their labels.

    Attributes:
        images: float32 `(n, 1, 8, 8)`, standardised.
        labels: int64 `(n,)`, 0 to 4.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, ids: Tensor) -> Examples:
        """Return the examples at these places."""
        return Examples(self.images[ids], self.labels[ids])


@dataclass(frozen=True)
class Digits:
    """The two halves of the problem.

    Attributes:
        first: digits 0 to 4, all of them, for pre-training.
        pool: digits 5 to 9 from which a seed draws its few labelled examples.
        test: the other digits 5 to 9, the same for every seed.
    """

    first: Examples
    pool: Examples
    test: Examples

    @property
    def points_per_example(self) -> float:
        """What one test example is worth, in points of accuracy."""
        return 100 / len(self.test)


def load_digits() -> Digits:
    """Load and split the digits; no network is used.

    Example:
        >>> digits = load_digits()
        >>> len(digits.first), len(digits.pool), len(digits.test)
        (901, 270, 626)
    """
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(labels)
    low = y < NUM_CLASSES
    x = (x - x[low].mean()) / x[low].std()  # the second half lends the first nothing
    second = Examples(x[~low], y[~low] - NUM_CLASSES)
    order = torch.randperm(len(second), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    return Digits(Examples(x[low], y[low]), second.take(order[:_POOL_SIZE]), second.take(order[_POOL_SIZE:]))


def draw(pool: Examples, shots: int, seed: int) -> Examples:
    """Draw `shots` examples of each class.

    Args:
        pool: what to draw from.
        shots: examples per class, at most the rarest class's number.
        seed: the same seed draws the same examples.

    Example:
        >>> draw(load_digits().pool, shots=2, seed=0).labels.tolist()
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """
    return pool.take(draw_ids(pool, shots, seed))


def draw_ids(pool: Examples, shots: int, seed: int) -> Tensor:
    """Return the places in the pool that `draw` takes."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    labels = pool.labels[order]
    return torch.cat([order[labels == label][:shots] for label in range(NUM_CLASSES)])
