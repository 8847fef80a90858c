"""Seconds on a CPU or a GPU: of a whole step, and of spans inside it that must not be disturbed by waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def now(device: str) -> float:
    """Return the time in seconds once everything queued on the device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Spans:
    """Adds up the time of calls: by the clock on a CPU, between two marks in the stream on a GPU."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self._spans: list[tuple[Any, Any]] = []

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""

        def run(*args: Any) -> Any:
            began = self._mark()
            result = function(*args)
            self._spans.append((began, self._mark()))
            return result

        return run

    def take(self) -> float:
        """Return the seconds since this was last asked; on a GPU only once the device has been waited for."""
        spans, self._spans = self._spans, []
        if self._on_gpu:
            return float(sum(began.elapsed_time(ended) for began, ended in spans)) / 1000
        return float(sum(ended - began for began, ended in spans))

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record()
        return mark
