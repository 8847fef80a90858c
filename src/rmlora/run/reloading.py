"""A finished run as something to predict with: its data, its model, its adapter, and its method for an ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmlora.attach import attach
from rmlora.config import RunConfig
from rmlora.config_source import read_config, resolve
from rmlora.errors import ConfigError, StateError
from rmlora.experts import load_mixture
from rmlora.modeling import load_model
from rmlora.run.choice import choose_method
from rmlora.run.encoding import encode
from rmlora.run.folder import RunFolder
from rmlora.saving import STATE_FILE
from rmlora.tasks.data import Examples, TaskData, load_data, read_examples
from rmlora.transform import Transform


@dataclass(frozen=True)
class Reloaded:
    """What is needed to predict.

    Attributes:
        config: of the run.
        data: of the run.
        examples: to predict.
        has_labels: whether they say what is right.
        encoded: the examples as the model reads them.
        model: a plain PEFT model, or an `Ensemble`.
        processor: its tokenizer or image processor.
    """

    config: RunConfig
    data: TaskData
    examples: Examples
    has_labels: bool
    encoded: Any
    model: Any
    processor: Any


def read_run(folder: RunFolder) -> RunConfig:
    """Read the configuration of a finished run.

    Raises:
        ConfigError: there is no such folder, no run in it, an unfinished one, or one of the classification layer alone.
    """
    path = folder.path
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise ConfigError(f'"{path}" {what}; give the folder that rmlora train wrote')
    if not folder.config.is_file():
        raise ConfigError(f'"{path}" has no config.yaml, so it holds no run of rmlora train')
    if not folder.result.is_file():
        raise ConfigError(f'the run in "{path}" is not finished; finish it: rmlora train {folder.config} --resume')
    config = resolve(read_config(folder.config), str(folder.config))
    if config.scope == "head":
        raise ConfigError(
            f'the run in "{path}" trained the classification layer alone; its README.md has the code that predicts'
        )
    if config.scope not in ("whole", "mixture", "federated", "derivative-free"):
        raise ConfigError(
            f'the run in "{path}" is one of scope={config.scope}; its README.md has the code that predicts'
        )
    return config


def choose_dropout(config: RunConfig, where: Path) -> Transform:
    """Return the method of a run if an ensemble can be made of it.

    Raises:
        ConfigError: it draws nothing, or its adapter is no longer what was trained.
    """
    method = choose_method(config)
    transform = method.build(**config.method_args)
    if not transform.samples:
        raise ConfigError(
            f'an ensemble averages random draws, and the run in "{where}" was trained by {method.name}, which draws '
            "none with its settings; leave --ensemble out, or train with --method lora-dropout"
        )
    if config.lora.init_lora_weights in ("pissa", "olora"):
        raise ConfigError(
            f'the run in "{where}" began with init_lora_weights={config.lora.init_lora_weights}, so its saved adapter '
            "has other factors than were trained; evaluate the ensemble in the run itself: evaluation.ensemble=N"
        )
    return transform


def reload(folder: RunFolder, config: RunConfig, file: str | None, transform: Transform | None) -> Reloaded:
    """Load examples and model of a finished run.

    Args:
        folder: of the run.
        config: from `read_run`.
        file: examples to predict; None takes the run's held-out part.
        transform: from `choose_dropout`, to be attached again; None predicts by the plain model.

    Raises:
        RmloraError: a file is missing or does not fit.
    """
    data = load_data(config.data, config.task, config.training.seed)
    examples, has_labels = (data.eval, True) if file is None else read_examples(file, data)
    is_whole = choose_method(config).trains_base
    loaded = load_model(config.model_copy(update={"model": str(folder.path)}) if is_whole else config, data)
    model = loaded.model if is_whole else _load_learnt(loaded.model, folder.path, config)
    if transform is not None:
        _attach_again(model, transform, folder.path, config.training.seed)
    model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu").eval()
    encoded = encode(config, examples, loaded)
    return Reloaded(config, data, examples, has_labels, encoded, model, loaded.processor)


def _load_learnt(base: Any, path: Path, config: RunConfig) -> Any:
    import peft

    if config.scope == "mixture" and config.mixture.combine == "gates":
        return load_mixture(base, path)

    from rmlora.analysis.folder import open_adapter

    open_adapter(path)
    return peft.PeftModel.from_pretrained(base, str(path))


def _attach_again(model: Any, transform: Transform, path: Path, seed: int) -> None:
    handle = attach(model, transform, seed=seed, fast=False, provides=transform.needs)
    if "fold" in handle.method.hooks():
        if not (path / STATE_FILE).is_file():
            raise StateError(
                f'"{path}" has no {STATE_FILE}, which holds the factors the method trained; '
                "leave --ensemble out, or copy the whole folder"
            )
        model.load_adapter(str(path), adapter_name=handle.adapter)
