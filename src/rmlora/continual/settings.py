"""Which settings of a run mean anything where tasks are learned one after the other."""

from __future__ import annotations

import os

from rmlora.config import RunConfig, read_setting
from rmlora.errors import ConfigError
from rmlora.methods import Method
from rmlora.run.choice import choose_method, complete
from rmlora.sections import ContinualSettings

TASKS = ("text-classification", "image-classification")

REFUSED: dict[str, tuple[object, str]] = {
    "init_adapter": (None, "a run begins with a new adapter"),
    "data.glue": (None, "a GLUE task has too few classes to split"),
    "training.metric": (None, "tasks are compared by accuracy"),
    "training.save": ("last", "only the last task's weights are there at the end"),
    "training.evaluate_every": (1, "each task is evaluated once, when it is learned"),
    "training.report_to": ([], "a tracker would see as many runs as there are tasks"),
}
"""Settings that must stay as they are, and why."""

SD_LORA_REFUSED: dict[str, tuple[object, str]] = {
    "lora.use_dora": (False, "sd-lora scales plain LoRA"),
    "lora.use_rslora": (False, "the scale must not change as directions are added; give lora.scale"),
    "lora.ranks": ("equal", "sd-lora gives every module the same directions; see continual.ranks"),
    "lora.init_lora_weights": (True, "new directions begin as LoRA's, with B = 0"),
}

OF_SD_LORA = ("ranks", "start", "rate", "drop_below")


def complete_continual(config: RunConfig) -> RunConfig:
    """Fill in what is left open, and refuse what would silently not happen.

    Args:
        config: as resolved; not mutated.

    Raises:
        ConfigError: `scope` is not continual, or a setting has no meaning there.

    Example:
        >>> complete_continual(RunConfig(model="m", scope="continual", method="lora")).training.lr
        0.001
    """
    if config.scope != "continual":
        raise ConfigError(f'scope is "{config.scope}"; tasks are learned one after the other with scope=continual')
    if config.task not in TASKS:
        raise ConfigError(f"scope=continual needs a task with classes ({', '.join(TASKS)}), not {config.task}")
    _refuse(config, REFUSED, "scope=continual")
    settings, method = config.continual, choose_method(config)
    if settings.classes and settings.tasks not in (_default("tasks"), len(settings.classes)):
        raise ConfigError(
            f"continual.tasks={settings.tasks}, but continual.classes has {len(settings.classes)}; leave tasks out"
        )
    if settings.strategy == "sd-lora":
        _check_sd_lora(config)
    else:
        given = [name for name in OF_SD_LORA if getattr(settings, name) != _default(name)]
        if given:
            raise ConfigError(f"continual.{given[0]} belongs to strategy sd-lora; leave it out of {settings.strategy}")
    if settings.strategy == "sequential":
        _check_sequential(config, method)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("scope=continual trains in one process; start one, without torchrun")
    if settings.classes:
        settings = settings.model_copy(update={"tasks": len(settings.classes)})
    return complete(config.model_copy(update={"continual": settings}))


def _default(name: str) -> object:
    return ContinualSettings.model_fields[name].get_default()


def _check_sd_lora(config: RunConfig) -> None:
    if config.method != "lora":
        raise ConfigError(
            f"continual.strategy=sd-lora trains plain LoRA factors, not {config.method}: give method=lora, or "
            "continual.strategy=sequential"
        )
    _refuse(config, SD_LORA_REFUSED, "continual.strategy=sd-lora")


def _check_sequential(config: RunConfig, method: Method) -> None:
    """Refuse what cannot hand an adapter of the same shape from one task to the next."""
    transform = method.build(**config.method_args)
    if not method.trains_base and method.adapts != "LORA":
        raise ConfigError(
            f"continual.strategy=sequential hands plain LoRA factors from task to task, which method {config.method} "
            "does not have; choose another, or strategy joint"
        )
    own = sorted(transform.hooks() & {"begin", "blocks", "fold"})
    if own:
        raise ConfigError(
            f"continual.strategy=sequential hands A and B alone from task to task, and method {config.method} has more "
            f"than these ({', '.join(own)}); choose another, or strategy joint"
        )
    if config.lora.init_lora_weights in ("pissa", "olora") or config.lora.use_dora:
        raise ConfigError(
            "continual.strategy=sequential hands A and B alone from task to task; leave lora.use_dora and "
            "lora.init_lora_weights out"
        )


def _refuse(config: RunConfig, refused: dict[str, tuple[object, str]], where: str) -> None:
    for name, (only, reason) in refused.items():
        value = read_setting(config, name)
        if value != only:
            raise ConfigError(f"{where} has no {name}={value}: {reason}; leave it out")
