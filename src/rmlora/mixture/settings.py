"""Which settings of a run mean anything where trained adapters are put together."""

from __future__ import annotations

import os

from rmlora.config import RunConfig, read_setting
from rmlora.errors import ConfigError
from rmlora.run.choice import complete

TASKS = ("text-classification", "text-regression", "image-classification")
METHOD = "lora"

ALLOWED: dict[str, object] = {
    "init_adapter": None,
    "lora.use_dora": False,
    "lora.ranks": "equal",
    "lora.target_modules": "auto",
    "lora.lora_dropout": 0.0,
    "lora.use_rslora": False,
    "lora.init_lora_weights": True,
    "lora.scale": None,
    "training.gradient_checkpointing": False,
    "training.group_by_length": False,
}
"""Values that a mixture can honour; anything else is refused rather than ignored. The experts bring their own."""


def complete_mixture(config: RunConfig) -> RunConfig:
    """Fill in what is left open, and refuse what would silently not happen; nothing is read.

    Args:
        config: as resolved; not mutated.

    Raises:
        ConfigError: `scope` is not mixture, there are no two experts, or a setting has no meaning there.

    Example:
        >>> experts = {"experts": ["runs/rte", "runs/cola"]}
        >>> config = RunConfig(model="m", scope="mixture", mixture=experts, data={"train": "mrpc.csv"})
        >>> complete_mixture(config).output
        'runs/mrpc-mixture-gates-seed0'
    """
    if config.scope != "mixture":
        raise ConfigError(f'scope is "{config.scope}"; only scope=mixture puts trained adapters together')
    if "method" not in config.model_fields_set:
        config = config.model_copy(update={"method": METHOD})
    if config.method != METHOD:
        raise ConfigError(
            f"scope=mixture trains gates and heads on frozen adapters, where method={config.method} has nothing to act "
            f"on; train the experts by it, and give method={METHOD} here"
        )
    if config.task not in TASKS:
        raise ConfigError(f"scope=mixture needs one of {', '.join(TASKS)}, not {config.task}")
    _check_experts(config)
    for name, value in ALLOWED.items():
        found = read_setting(config, name)
        if found != value:
            raise ConfigError(f"scope=mixture has no {name}={found}: the experts bring their own; leave it out")
    done = complete(config)
    if config.output is None:
        plain, own = f"-{METHOD}-r{done.lora.r}-seed", f"-mixture-{done.mixture.combine}-seed"
        done = done.model_copy(update={"output": str(done.output).replace(plain, own)})
    return done


def _check_experts(config: RunConfig) -> None:
    experts = config.mixture.experts
    if len(experts) < 2:
        raise ConfigError(
            f"mixture.experts needs the folders of two trained adapters or more, got {len(experts)}; "
            "rmlora train makes one"
        )
    places = [os.path.abspath(os.path.expanduser(path)) for path in experts]
    twice = next((experts[i] for i, place in enumerate(places) if place in places[:i]), None)
    if twice is not None:
        raise ConfigError(f'mixture.experts has "{twice}" twice; give each adapter once')
