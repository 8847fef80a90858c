"""What Slurm is told of every cell's job: from the study's `slurm` section and `--slurm key=value` words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from rmlora.errors import ConfigError, nearest
from rmlora.sections import Section


class SlurmSettings(Section):
    """Settings of Slurm jobs; what is not given is the cluster's default."""

    executor: Literal["slurm", "local"] = Field(
        default="slurm", description="submitit's executor; local tries it out on this machine, without Slurm."
    )
    partition: str | None = Field(default=None, description="Where jobs queue.")
    account: str | None = Field(default=None, description="Whom they are charged to.")
    qos: str | None = Field(default=None, description="Quality of service.")
    time: str = Field(
        default="4:00:00", description='Of one cell, as sbatch reads it, in quotes: "90" minutes, "4:00:00", "1-12".'
    )
    mem: str | None = Field(default=None, description='Of one cell, e.g. "32G".')
    setup: list[str] = Field(default_factory=list, description="Shell lines before the job, e.g. module loads.")
    options: dict[str, str | int | bool] = Field(
        default_factory=dict, description="Further options of sbatch by their long names, e.g. {constraint: a100}."
    )

    @field_validator("time", mode="before")
    @classmethod
    def _quoted(cls, value: Any) -> Any:
        if not isinstance(value, str):  # YAML reads 4:00:00 as the number 14400
            raise ValueError(f'slurm.time: write it in quotes, as "4:00:00" or "90" (minutes); got {value!r}')
        minutes_of(value)
        return value

    @field_validator("mem")
    @classmethod
    def _sized(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d+[KMGT]?B?", value, re.IGNORECASE):
            raise ValueError(f'slurm.mem: expected a size such as "32G", got "{value}"')
        return value


def minutes_of(time: str) -> float:
    """Read a time limit as sbatch does.

    Args:
        time: minutes, minutes:seconds, hours:minutes:seconds, days-hours, or days-hours:minutes[:seconds].

    Returns:
        Minutes, above 0.

    Raises:
        ValueError: it is none of these.

    Example:
        >>> minutes_of("90"), minutes_of("4:00:00"), minutes_of("1-12"), minutes_of("1:30")
        (90.0, 240.0, 2160.0, 1.5)
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time.strip())
    if found is not None:
        days, *rest = found.groups()
        parts = [int(part) for part in rest if part is not None]
        units = (60, 1, 1 / 60) if days is not None or len(parts) == 3 else (1, 1 / 60)
        minutes = int(days or 0) * 1440 + sum(part * unit for part, unit in zip(parts, units, strict=False))
        if minutes > 0:
            return float(minutes)
    raise ValueError(f'slurm.time: expected a time limit such as "90", "4:00:00" or "1-12", got "{time}"')


def with_words(settings: SlurmSettings, words: Sequence[str]) -> SlurmSettings:
    """Put `key=value` words over the settings of a file.

    Args:
        settings: of the study.
        words: of the command line; only settings that hold one value can be given so.

    Raises:
        ConfigError: not `key=value`, a name that does not exist, or a value out of range.

    Example:
        >>> with_words(SlurmSettings(), ["partition=gpu", "time=1:00:00"]).partition
        'gpu'
    """
    known = [name for name in SlurmSettings.model_fields if name not in ("setup", "options")]
    changes = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ConfigError(f'--slurm: expected key=value, got "{word}"')
        if key not in known:
            raise ConfigError(f'--slurm: unknown setting "{key}"{nearest(key, known)}; there are {", ".join(known)}')
        changes[key] = value
    try:
        return SlurmSettings.model_validate(settings.model_dump(exclude_unset=True) | changes)
    except ValidationError as error:
        first = error.errors()[0]
        text = first["msg"].removeprefix("Value error, ")
        where = "" if first["type"] == "value_error" else f"{'.'.join(map(str, first['loc']))}: "
        raise ConfigError(f"--slurm: {where}{text[0].lower() + text[1:]}") from error
