"""Which settings of a run mean anything where many clients train and a server averages."""

from __future__ import annotations

import os

from rmlora.config import RunConfig, read_setting
from rmlora.errors import ConfigError
from rmlora.run.choice import choose_method, complete

TASKS = ("text-classification", "image-classification")

METHODS = ("lora", "r-lora", "gm-lora", "rm-lora")
"""Methods that act on gradients alone and remember nothing: a client can begin one anew in every round."""

ALLOWED: dict[str, tuple[object, ...]] = {
    "init_adapter": (None,),
    "lora.use_dora": (False,),
    "lora.init_lora_weights": (True, "gaussian", "orthogonal"),
    "training.gradient_accumulation_steps": (1,),
    "training.optimizer": ("adamw_torch_fused", "adamw_torch"),
    "training.precision": ("fp32",),
    "training.group_by_length": (False,),
    "training.gradient_checkpointing": (False,),
    "training.num_workers": (0,),
    "training.save": ("last",),
    "training.report_to": ([],),
}
"""Values the rounds can honour; anything else is refused rather than ignored."""

_EPOCHS = 3


def complete_federated(config: RunConfig) -> RunConfig:
    """Fill in what is left open, and refuse what would silently not happen.

    Args:
        config: as resolved; not mutated.

    Raises:
        ConfigError: a setting has no meaning with scope=federated.

    Example:
        >>> complete_federated(RunConfig(model="m", scope="federated", method="lora")).training.lr
        0.001
    """
    if config.task not in TASKS:
        raise ConfigError(f"scope=federated deals out classes, so it needs {' or '.join(TASKS)}, not {config.task}")
    method = choose_method(config)
    if method.name not in METHODS:
        raise ConfigError(
            f"scope=federated trains {', '.join(METHODS)}; {method.name} has more than A and B to begin anew and to "
            "average in every round"
        )
    if config.training.epochs != _EPOCHS:
        raise ConfigError(
            "scope=federated counts rounds: give federated.rounds and federated.local_epochs instead of training.epochs"
        )
    for name, values in ALLOWED.items():
        found = read_setting(config, name)
        if not any(found == value and type(found) is type(value) for value in values):
            allowed = " or ".join(map(str, values))
            raise ConfigError(f"scope=federated has no {name}={found}: clients train in fp32 by AdamW; give {allowed}")
    _check_group(config)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ConfigError(
            f"scope=federated starts its clients itself, but {processes} processes run: leave torchrun out"
        )
    return complete(config)


def _check_group(config: RunConfig) -> None:
    """Refuse settings of the group that contradict each other."""
    told = config.federated
    if told.local_steps is not None and "local_epochs" in told.model_fields_set and told.local_epochs != 1:
        raise ConfigError("give either federated.local_epochs or federated.local_steps, not both")
    if told.head == "b" and told.factors != "alternate":
        raise ConfigError(f"federated.head=b skips the rounds of A, and factors={told.factors} has none; leave it out")
    host, colon, port = told.superlink.rpartition(":")
    if not told.superlink or (colon and not (host and port.isdigit())):
        raise ConfigError(
            f'federated.superlink="{told.superlink}" is neither host:port, as 127.0.0.1:8000, nor a name in Flower\'s '
            "own configuration"
        )
