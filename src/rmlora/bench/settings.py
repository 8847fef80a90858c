"""What a benchmark measures and how often, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rmlora.errors import ConfigError, nearest

CONTENDERS = {
    "floor": "the frozen model, forward and backward to its inputs",
    "peft": "plain LoRA of PEFT, with an optimizer step",
    "reference": "RM-LoRA on its reference path",
    "rmlora": "RM-LoRA as attached by default",
}
"""Names of what is measured, each with one line."""

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class BenchSettings:
    """The settings of one benchmark, alike for every model it measures.

    Args:
        r: directions of each adapted module; lora_alpha is 2 r.
        directions: how many of them learn at a step; None takes the method's.
        weight: strength of the penalty; None takes the method's.
        batch: examples a step; None takes the model's own.
        length: tokens of a text; None takes the model's own.
        dtype: of the frozen weights.
        autocast: run forward under autocast to bfloat16.
        rounds: measured steps of each contender.
        warmup: steps of each before, at least one.
        threads: of PyTorch; None leaves them as they are.
        device: "cpu" or "cuda".
        contenders: names among `CONTENDERS`, each once.
        profile: also record the operators of a step.

    Raises:
        ConfigError: a value is out of range, or a name unknown.

    Example:
        >>> BenchSettings(r=8, directions=9)
        Traceback (most recent call last):
        ...
        rmlora.errors.ConfigError: --directions: 9 of r = 8 cannot learn; give at most 8
    """

    r: int = 8
    directions: int | None = None
    weight: float | None = None
    batch: int | None = None
    length: int | None = None
    dtype: str = "float32"
    autocast: bool = False
    rounds: int = 20
    warmup: int = 3
    threads: int | None = None
    device: str = "cpu"
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    profile: bool = False

    def __post_init__(self) -> None:
        for name in ("r", "directions", "batch", "length", "rounds", "warmup", "threads"):
            value: Any = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name}: expected at least 1, got {value}")
        if self.weight is not None and not 0 <= self.weight < float("inf"):
            raise ConfigError(f"--weight: expected 0 or more, got {self.weight}")
        if self.directions is not None and self.directions > self.r:
            raise ConfigError(f"--directions: {self.directions} of r = {self.r} cannot learn; give at most {self.r}")
        _one_of("--dtype", self.dtype, DTYPES)
        _check_device(self.device)
        for name in self.contenders:
            _one_of("--contenders", name, tuple(CONTENDERS))
        if not self.contenders or len(set(self.contenders)) < len(self.contenders):
            raise ConfigError(f"--contenders: expected each of {', '.join(CONTENDERS)} at most once, and at least one")


def _one_of(flag: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ConfigError(f'{flag}: no "{given}"{nearest(given, list(known))}; there are {", ".join(known)}')


def _check_device(device: str) -> None:
    import torch

    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdecimal())):
        raise ConfigError(f'--device: expected cpu, cuda or cuda:N, got "{device}"')
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= found:
            raise ConfigError(f'--device: "{device}" is not here, PyTorch sees {found} CUDA devices; give --device cpu')
