"""A run of the classification layer alone, checked and made ready before its folder is touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.heads.counting import count_start
from rmlora.heads.features import Features, FeatureSize, load_features, size_features
from rmlora.heads.layer import Layer, make_layer
from rmlora.heads.settings import complete_head
from rmlora.run.choice import choose_method, describe_links
from rmlora.run.plan import Described
from rmlora.run.trainer import quieten
from rmlora.tasks.data import TaskData, load_data
from rmlora.tasks.metrics import choose_metric


@dataclass(frozen=True, eq=False)
class HeadRun(Described):
    """A run, ready to start.

    Attributes:
        features: what the layer reads.
        device: where the layer is trained.
    """

    features: Features
    device: torch.device

    @property
    def outputs(self) -> int:
        """Classes, or 1 for a regression."""
        return count_outputs(self.data)

    def draw(self) -> Layer:
        """Make the layer as training starts from it, and seed what training draws from the global generator."""
        torch.manual_seed(self.config.training.seed)
        return make_layer(self.config, self.features.train.shape[1], self.outputs).to(self.device)


def prepare(config: RunConfig, tell: Callable[[str], None] = lambda text: None) -> HeadRun:
    """Check a configuration, read its data, and have the features in the cache; nothing else is written.

    Args:
        config: with `scope: head`.
        tell: told in a line if features have to be computed, before they are.

    Raises:
        RmloraError: whatever would stop the run later.
    """
    config, data = _check(config)
    restore = quieten()
    try:
        features = load_features(config, data, tell)
    finally:
        restore()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    told = _describe(config, data, features.train.shape[1], features.backbone)
    return HeadRun(**told, features=features, device=device or torch.device("cpu"))


def foresee(config: RunConfig) -> tuple[Described, FeatureSize]:
    """Check all that `prepare` checks without computing the features; nothing is written.

    Args:
        config: with `scope: head`.

    Raises:
        RmloraError: as `prepare`.
    """
    config, data = _check(config)
    size = size_features(config, data)
    return Described(**_describe(config, data, size.d, size.backbone)), size


def count_outputs(data: TaskData) -> int:
    """Classes, or 1 for a regression."""
    return 1 if data.classes is None else len(data.classes)


def _check(config: RunConfig) -> tuple[RunConfig, TaskData]:
    """Complete a configuration and read its data; what would stop the run is found before any feature is computed."""
    config = complete_head(config)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ConfigError(
            f"scope=head trains in one process, but {processes} were started; start one, without torchrun"
        )
    data = load_data(config.data, config.task, config.training.seed)
    choose_metric(config.training.metric, config.task, count_outputs(data))
    _try_layer(config, config.lora.r, count_outputs(data))
    return config, data


def _describe(config: RunConfig, data: TaskData, d_in: int, backbone: int) -> dict[str, Any]:
    """What `Described` holds."""
    method, outputs = choose_method(config), count_outputs(data)
    return {
        "config": config,
        "method": method,
        "data": data,
        "links": describe_links(method.build(**config.method_args)),
        "metric": choose_metric(config.training.metric, config.task, outputs),
        "counts": count_start(_try_layer(config, d_in, outputs), backbone),
    }


def _try_layer(config: RunConfig, d_in: int, outputs: int) -> Layer:
    """Make a layer that is not trained, leaving the global generator as it was."""
    with torch.random.fork_rng():
        return make_layer(config, d_in, outputs)
