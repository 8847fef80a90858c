"""Bytes a piece of work allocates: its highest point above what was there before, and what stays."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass
class Allocated:
    """What was allocated inside `watch_allocations`, known when it has ended.

    Attributes:
        peak: the highest point, in bytes above what was there before.
        stays: what is still there at the end, in bytes; less than zero if more was freed than allocated.
    """

    peak: int = 0
    stays: int = 0


@contextlib.contextmanager
def watch_allocations(device: str) -> Iterator[Allocated]:
    """Count what PyTorch's allocator of a device hands out and takes back.

    On CUDA these are the allocator's own counters. A CPU's allocator keeps none, and the resident memory of the
    process tells nothing where several contenders live in it, so there every allocation and release is recorded by
    torch.profiler and summed in order. That is exact for tensors, and blind to what libraries allocate by themselves
    and to the release of tensors that were made while nobody watched.

    Args:
        device: "cpu", or a CUDA device.

    Example:
        >>> with watch_allocations("cpu") as allocated:
        ...     kept = torch.zeros(1000, dtype=torch.float64) + torch.ones(1000, dtype=torch.float64)
        >>> allocated.stays
        8000
    """
    gc.collect()
    allocated = Allocated()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield allocated
        torch.cuda.synchronize(device)
        allocated.peak = torch.cuda.max_memory_allocated(device) - before
        gc.collect()
        allocated.stays = torch.cuda.memory_allocated(device) - before
        return
    quieten_profiler()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield allocated
        gc.collect()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    events = sorted(events, key=lambda event: event.start_ns())
    allocated.peak, allocated.stays = running_peak(event.nbytes() for event in events)


def running_peak(changes: Iterable[int]) -> tuple[int, int]:
    """Return the highest running sum, at least 0, and the last one.

    Args:
        changes: bytes allocated (above zero) and released (below), in order.

    Example:
        >>> running_peak([4, 4, -4, 2])
        (8, 6)
    """
    levels = list(accumulate(changes, initial=0))
    return max(levels), levels[-1]


def quieten_profiler() -> None:
    """Keep the profiler's own log off the terminal, unless the user has chosen what it says."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
