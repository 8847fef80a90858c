"""Rounds of steps: every contender once a round, in a new order each time."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from rmlora.bench.clock import now
from rmlora.bench.contenders import Contender


def warm_up(contender: Contender, batch: dict[str, Tensor]) -> None:
    """Take the unmeasured steps: optimizer state, kernels and caches come to be here."""
    with contender.alone():
        for _ in range(contender.settings.warmup):
            contender.step(batch)
    if contender.spans is not None:
        now(contender.settings.device)
        contender.spans.take()


def measure_rounds(contenders: Sequence[Contender], batch: dict[str, Tensor], rounds: int) -> Iterator[dict[str, Any]]:
    """Yield one measurement per round and contender.

    Within a round contenders follow each other at once, so a disturbance of the machine hits their ratio little; the
    order is drawn anew each time (the same in every benchmark), so that nobody always has the same predecessor.

    Args:
        contenders: warmed up.
        batch: the same for all.
        rounds: how many.

    Yields:
        `round`, `position` in it, `contender`, `seconds` by the clock, `cpu_seconds` of all threads, `hooks_s` inside
        rmlora's hooks (None without any) and `loss`.
    """
    draw = random.Random(0)
    for index in range(rounds):
        order = list(contenders)
        draw.shuffle(order)
        for position, contender in enumerate(order):
            yield {"round": index, "position": position, "contender": contender.name, **_measure(contender, batch)}


def _measure(contender: Contender, batch: dict[str, Tensor]) -> dict[str, Any]:
    device = contender.settings.device
    with contender.alone():
        began, began_cpu = now(device), time.process_time()
        loss = contender.step(batch)
        seconds, cpu_seconds = now(device) - began, time.process_time() - began_cpu
    hooks = None if contender.spans is None else contender.spans.take()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "hooks_s": hooks, "loss": loss.item()}
