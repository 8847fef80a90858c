"""Choosing the method of a run by name, and completing settings that depend on it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from rmlora.adapting import alpha
from rmlora.config import DataConfig, LoraSettings, RunConfig
from rmlora.errors import AdapterError, ConfigError, nearest
from rmlora.methods import METHODS, Method
from rmlora.tasks.glue import settle_glue

DEFAULT_LENGTH = {"question-answering": 384}
DEFAULT_LR = {"LORA": 1e-3, "ADALORA": 1e-3, "VERA": 1e-2, "full": 2e-5}
"""By the kind of adapter a method trains; that of VeRA is ten times LoRA's, as usual for its few vectors."""


def all_knobs() -> tuple[str, ...]:
    """List the names of every setting some method takes.

    Example:
        >>> "weight" in all_knobs()
        True
    """
    return tuple(dict.fromkeys(knob for method in METHODS.values() for knob in method.knobs))


def choose_method(config: RunConfig) -> Method:
    """Return the row of METHODS a configuration names, once its knobs are known to exist.

    Raises:
        ConfigError: no such method, or the method has no such knob; the nearest, or the methods that have it,
            are named.

    Example:
        >>> choose_method(RunConfig(model="m", method="lora")).name
        'lora'
    """
    method = METHODS.get(config.method)
    if method is None:
        hint = nearest(config.method, list(METHODS))
        raise ConfigError(f'unknown method "{config.method}"{hint}; there are {", ".join(METHODS)}')
    for name in config.method_args:
        if name not in method.knobs:
            raise ConfigError(f'method {method.name} has no setting "{name}"{_remedy(name, method)}')
    return method


def _remedy(name: str, method: Method) -> str:
    others = [other.name for other in METHODS.values() if name in other.knobs]
    if others:
        return f"; {', '.join(others)} {'has' if len(others) == 1 else 'have'} it"
    return nearest(name, list(method.knobs)) + f"; it has {', '.join(method.knobs) or 'none'}"


def describe_links(transform: Any) -> list[dict[str, Any]]:
    """Say what a method does in full: each link of its chain with all its values, defaults included.

    Example:
        >>> describe_links(METHODS["r-lora"].build(weight=1e-3))[0]["weight"]
        0.001
    """
    links = []
    for link in getattr(transform, "links", ()):
        values = {field.name: getattr(link, field.name) for field in fields(link)}
        plain = {k: v if isinstance(v, str | int | float | None) else repr(v) for k, v in values.items()}
        links.append({"link": type(link).__name__, **plain})
    return links


def complete(config: RunConfig) -> RunConfig:
    """Fill in what depends on other settings: learning rate, alpha, output folder, an adapter's own settings.

    Args:
        config: as resolved from file, words and flags; not mutated.

    Returns:
        A configuration in which nothing that decides the result is left open.

    Raises:
        ConfigError: settings contradict each other, or those of the adapter to go on training.
    """
    config = settle_glue(config)
    method = choose_method(config)
    if method.trains_base and config.init_adapter is not None:
        raise ConfigError(f"method {method.name} has no adapter, so init_adapter has nothing to start")
    check_ensemble(config, method)
    lora = config.lora if config.init_adapter is None else _adapter_settings(config)
    lora = lora.model_copy(update={"lora_alpha": alpha(lora)})
    lr = config.training.lr or DEFAULT_LR["full" if method.trains_base else method.adapts]
    config = config.model_copy(update={"data": _data_settings(config)})
    training = config.training.model_copy(update={"lr": lr})
    if training.save == "best" and not training.save_every_epoch:
        raise ConfigError("training.save=best needs the checkpoints of training.save_every_epoch=true")
    if training.save == "best" and training.evaluate_every > 1:
        raise ConfigError("training.save=best needs every epoch evaluated; leave training.evaluate_every at 1")
    settled = config.model_copy(update={"lora": lora, "training": training})
    return settled.model_copy(update={"output": config.output or _output_name(settled, method)})


def check_ensemble(config: RunConfig, method: Method) -> None:
    """Refuse an ensemble of instances that would all be the same.

    Raises:
        ConfigError: the method draws nothing at inference, or only the classification layer is trained.
    """
    if not config.evaluation.ensemble:
        return
    if config.scope != "whole":
        raise ConfigError(
            f"evaluation.ensemble evaluates one adapter of the whole model; leave it out with scope={config.scope}"
        )
    if not method.build(**config.method_args).samples:
        raise ConfigError(
            f"evaluation.ensemble={config.evaluation.ensemble} averages random draws of a method, and {method.name} "
            "with these settings draws nothing; use lora-dropout with p above 0, or leave evaluation.ensemble out"
        )


def _data_settings(config: RunConfig) -> DataConfig:
    """Give a task its own length where none was set."""
    length = DEFAULT_LENGTH.get(config.task)
    if length is None or "max_length" in config.data.model_fields_set:
        return config.data
    return config.data.model_copy(update={"max_length": length})


def _adapter_settings(config: RunConfig) -> LoraSettings:
    """Take r, alpha and the like from the adapter; settings the user wrote must agree with it."""
    from rmlora.analysis.folder import open_adapter

    stored = open_adapter(Path(str(config.init_adapter))).config
    names = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
    found: dict[str, Any] = {name: stored[name] for name in names if name in stored}
    found["target_modules"] = stored.get("target_modules", "auto")
    try:
        found["scale"] = found["lora_alpha"] / (found["r"] ** (0.5 if found.get("use_rslora") else 1))
        settings = LoraSettings(**found)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        told = ", ".join(f"{name}={found.get(name)!r}" for name in ("r", "lora_alpha", "target_modules"))
        raise AdapterError(
            f"{config.init_adapter}: adapter_config.json has settings that no LoRA adapter can have, among {told[:200]}"
        ) from error
    for name in config.lora.model_fields_set & found.keys():
        wanted = getattr(config.lora, name)
        if name != "target_modules" and wanted is not None and wanted != found[name]:
            raise ConfigError(
                f"lora.{name} is {wanted}, but the adapter {config.init_adapter} has {found[name]}: leave it out"
            )
    return settings


def _output_name(config: RunConfig, method: Method) -> str:
    source = config.data.dataset or config.data.train or "data"
    path = Path(source).expanduser().resolve()
    generic = ("train", "training", "data", "subset")
    data = path.parent.name if path.stem in generic and path.parent.name else path.stem
    if config.data.dataset is not None:
        data = source.strip("/").replace("/", "-")
    size = "" if method.trains_base else f"-r{config.lora.r}"
    return f"runs/{data}-{method.name}{size}-seed{config.training.seed}"
