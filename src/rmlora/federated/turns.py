"""Whose turn it is: which tensors a round trains, which clients take part, with which seed and learning rate."""

from __future__ import annotations

from typing import Literal

import torch

from rmlora.config import TrainingConfig
from rmlora.draws import hash_word
from rmlora.sections import FederatedSettings

Part = Literal["A", "B", "head"]

_CLIENTS, _TRAINING = 1, 2
"""Streams of the draws."""


def part_of(name: str) -> Part:
    """Say what a trained tensor is, by its name in the model.

    Example:
        >>> part_of("encoder.query.lora_B.default.weight"), part_of("classifier.modules_to_save.default.bias")
        ('B', 'head')
    """
    if ".lora_A." in name:
        return "A"
    return "B" if ".lora_B." in name else "head"


def parts_of_round(settings: FederatedSettings, number: int) -> frozenset[Part]:
    """Return what a round trains, sends and averages; everything else stands still in it.

    Args:
        settings: `factors` and `head`.
        number: of the round, from 1. By turns, odd rounds train B and even ones A.

    Example:
        >>> settings = FederatedSettings(factors="alternate", head="b")
        >>> sorted(parts_of_round(settings, 1)), sorted(parts_of_round(settings, 2))
        (['B', 'head'], ['A'])
    """
    factors: set[Part] = {"A", "B"} if settings.factors == "both" else {"B"}
    if settings.factors == "alternate" and number % 2 == 0:
        factors = {"A"}
    if settings.head == "every" or "B" in factors:
        factors.add("head")
    return frozenset(factors)


def parts_before(settings: FederatedSettings, number: int) -> frozenset[Part]:
    """Return what rounds before this one trained: what a client that remembers nothing has to be sent.

    Example:
        >>> sorted(parts_before(FederatedSettings(), 1)), sorted(parts_before(FederatedSettings(), 3))
        ([], ['A', 'B', 'head'])
    """
    parts: frozenset[Part] = frozenset()
    for earlier in range(1, min(number, 3)):  # two rounds are the whole cycle
        parts |= parts_of_round(settings, earlier)
    return parts


def clients_of_round(settings: FederatedSettings, seed: int, number: int) -> list[int]:
    """Draw the clients of a round, ascending: a share of all, at least one.

    Args:
        settings: `clients` and `fraction`.
        seed: of the run.
        number: of the round.

    Example:
        >>> clients_of_round(FederatedSettings(clients=3), seed=0, number=1)
        [0, 1, 2]
    """
    count = max(1, round(settings.fraction * settings.clients))
    if count == settings.clients:
        return list(range(count))
    generator = torch.Generator().manual_seed(hash_word(seed, number, _CLIENTS))
    return sorted(torch.randperm(settings.clients, generator=generator)[:count].tolist())


def client_seed(seed: int, number: int, client: int) -> int:
    """Return the seed of all that a client draws in a round: order of examples, dropout, masks.

    Example:
        >>> client_seed(0, 1, 2) == client_seed(0, 1, 2) != client_seed(0, 2, 1)
        True
    """
    return hash_word(seed, number, client, _TRAINING)


def rate_of_round(training: TrainingConfig, number: int, rounds: int) -> float:
    """Return the learning rate of a round: constant within it, from round to round as `lr_scheduler` says.

    Args:
        training: `lr`, `lr_scheduler` and `warmup_steps`, which counts rounds (below 1: their share).
        number: of the round, from 1.
        rounds: in all.

    Example:
        >>> [round(rate_of_round(TrainingConfig(lr=1.0), n, 4), 2) for n in (1, 2, 3, 4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=float(training.lr or 0))
    warm = training.warmup_steps
    warm = round(warm * rounds) if warm < 1 else int(warm)
    schedule = get_scheduler(training.lr_scheduler, optimizer, num_warmup_steps=warm, num_training_steps=rounds)
    for _ in range(number - 1):
        optimizer.step()
        schedule.step()
    return float(optimizer.param_groups[0]["lr"])
