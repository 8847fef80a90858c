"""Which settings of a run mean anything where nothing is trained by gradients."""

from __future__ import annotations

from rmlora.config import RunConfig, read_setting
from rmlora.errors import ConfigError
from rmlora.run.choice import complete

SIGMA = 1.0
"""Step size the search begins with, where training.lr is not given."""

TASKS = ("text-classification", "text-regression", "image-classification")

ALLOWED: dict[str, tuple[object, ...]] = {
    "method": ("lora",),
    "init_adapter": (None,),
    "lora.use_dora": (False,),
    "lora.lora_dropout": (0.0,),
    "lora.init_lora_weights": (True,),
    "training.epochs": (3,),
    "training.weight_decay": (0.0,),
    "training.gradient_accumulation_steps": (1,),
    "training.optimizer": ("adamw_torch_fused",),
    "training.gradient_checkpointing": (False,),
    "training.save": ("last",),
    "training.report_to": ([],),
}
"""Values at which a setting asks for nothing a search cannot do; anything else is refused rather than ignored."""


def complete_search(config: RunConfig) -> RunConfig:
    """Fill in what is left open, and refuse what would silently not happen.

    Args:
        config: as resolved; not mutated.

    Raises:
        ConfigError: a setting has no meaning here, or there are fewer evaluations than one generation needs.

    Example:
        >>> complete_search(RunConfig(model="m", scope="derivative-free", method="lora")).training.lr
        1.0
    """
    if config.task not in TASKS:
        raise ConfigError(
            f"scope=derivative-free needs a task with one label per example ({', '.join(TASKS)}), not {config.task}; "
            "for any other loss call rmlora.derivative_free.search"
        )
    for name, values in ALLOWED.items():
        found = read_setting(config, name)
        if not any(found == value and type(found) is type(value) for value in values):
            allowed = " or ".join(map(str, values))
            raise ConfigError(f"scope=derivative-free computes no gradients and has no {name}={found}; give {allowed}")
    settings = config.derivative_free
    if settings.evaluations < 1 + settings.population:
        raise ConfigError(
            f"derivative_free.evaluations={settings.evaluations} is fewer than one generation of "
            f"{settings.population} and the start; give {1 + settings.population} or more"
        )
    if config.training.lr is None:
        config = config.model_copy(update={"training": config.training.model_copy(update={"lr": SIGMA})})
    return complete(config)
