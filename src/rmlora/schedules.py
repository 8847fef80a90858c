"""Schedules: scalars that change with the optimizer step. Any scalar of a link may be one.

A schedule is any callable from the number of completed optimizer steps (0 at the first step) to a number.
Those here are frozen dataclasses, so that a method prints, compares and pickles.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rmlora.errors import MethodError

Schedule = Callable[[int], float]
Scalar = float | Schedule

T = TypeVar("T", int, float)


def value_at(scalar: "T | Callable[[int], T]", step: int) -> T:
    """Return a scalar's value at `step`, whether it is a number or a schedule.

    Example:
        >>> value_at(0.5, step=3), value_at(lambda step: 2.0 * step, step=3)
        (0.5, 6.0)
    """
    return scalar(step) if callable(scalar) else scalar


@dataclass(frozen=True)
class constant:  # noqa: N801 - schedules read as functions: weight=linear(0, 1e-3, 500)
    """The same value at every step.

    Example:
        >>> constant(0.1)(1000)
        0.1
    """

    value: float

    def __call__(self, step: int) -> float:
        """Return the value, whatever the step."""
        return self.value


@dataclass(frozen=True)
class _Ramp(ABC):
    """A path from `start` to `end` over `num_steps` optimizer steps, constant afterwards.

    Attributes:
        start: value at step 0.
        end: value from step `num_steps` on.
        num_steps: length of the path in optimizer steps, >= 1.
        begin: optimizer steps to wait at `start` first, >= 0.
    """

    start: float
    end: float
    num_steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.begin < 0:
            raise MethodError(
                f"a schedule needs num_steps >= 1 and begin >= 0, got num_steps={self.num_steps}, begin={self.begin}"
            )

    def __call__(self, step: int) -> float:
        """Return the value at `step`."""
        progress = min(max(step - self.begin, 0) / self.num_steps, 1.0)
        return self.start + (self.end - self.start) * self._shape(progress)

    @abstractmethod
    def _shape(self, progress: float) -> float:
        """The share of the way covered, 0 to 1, at `progress` from 0 to 1."""


@dataclass(frozen=True)
class linear(_Ramp):  # noqa: N801
    """A straight line from `start` to `end`.

    Example:
        >>> [linear(0.0, 1.0, num_steps=4)(step) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """

    def _shape(self, progress: float) -> float:
        return progress


@dataclass(frozen=True)
class cosine(_Ramp):  # noqa: N801
    """Half a cosine from `start` to `end`: flat at both ends.

    Example:
        >>> [round(cosine(1.0, 0.0, num_steps=4)(step), 4) for step in (0, 1, 2, 4)]
        [1.0, 0.8536, 0.5, 0.0]
    """

    def _shape(self, progress: float) -> float:
        return (1.0 - math.cos(math.pi * progress)) / 2.0


@dataclass(frozen=True)
class cubic(_Ramp):  # noqa: N801
    """A cubic from `start` to `end`, fast first: the shape of AdaLoRA's budget (arXiv:2303.10512).

    Example:
        >>> [cubic(8.0, 0.0, num_steps=2)(step) for step in (0, 1, 2)]
        [8.0, 1.0, 0.0]
    """

    def _shape(self, progress: float) -> float:
        return 1.0 - (1.0 - progress) ** 3
