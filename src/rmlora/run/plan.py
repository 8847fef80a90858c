"""Everything a run needs, made ready and checked before anything is written; and saying what it would do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rmlora.combine import Chain
from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.handle import Attached
from rmlora.methods import Method
from rmlora.modeling import Loaded
from rmlora.pairs import Pair
from rmlora.replicate import attach_replicated
from rmlora.run.arguments import training_arguments
from rmlora.run.choice import choose_method, describe_links
from rmlora.run.completion_limits import check_completion_task
from rmlora.run.encoding import encode_parts
from rmlora.run.folder import RunFolder
from rmlora.run.sources import Sources
from rmlora.tasks.data import TaskData
from rmlora.tasks.metrics import choose_metric
from rmlora.transform import Transform
from rmlora.two_parts import TwoPartBatches, find_levels


@dataclass(frozen=True)
class Counts:
    """Parameters of a model by what happens to them.

    Attributes:
        adapter: entries of A and B, AdaLoRA's values, SoRA's gates, DoRA's magnitudes, VeRA's vectors.
        head: trained and saved whole: pooler, classifier.
        base: trained entries of the pretrained model itself; not 0 only without an adapter.
        frozen: never changed.
    """

    adapter: int
    head: int
    base: int
    frozen: int

    @property
    def trainable(self) -> int:
        """What gets gradients: T, at the start of training."""
        return self.adapter + self.head + self.base

    @property
    def share(self) -> float:
        """Trainable entries over all entries of the model without its adapter."""
        return self.trainable / max(self.head + self.base + self.frozen, 1)


@dataclass(frozen=True)
class Described:
    """A run as far as it has to be described, whatever of the model it trains.

    Attributes:
        config: complete.
        method: its row of METHODS.
        data: examples, checked.
        links: what the method consists of, with every value.
        metric: decides the best epoch.
        counts: of parameters.
    """

    config: RunConfig
    method: Method
    data: TaskData
    links: list[dict[str, Any]]
    metric: str
    counts: Counts

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch on one device."""
        return _steps_per_epoch(self.config, len(self.data.train))


@dataclass(frozen=True)
class Plan(Described):
    """A run through the whole model, ready to start.

    Attributes:
        encoded: what the model reads of each part, "train" and "eval", in the order of the examples.
        model: a PEFT model with the method attached, or the plain model of a method without adapter.
        processor: tokenizer or image processor.
        handle: what `attach` returned; None without an adapter.
        heads: modules trained whole.
        arguments: of the HF Trainer.
    """

    encoded: Mapping[str, Any]
    model: Any
    processor: Any
    handle: Any
    heads: tuple[str, ...]
    arguments: Any

    @property
    def pairs(self) -> Sequence[Pair]:
        """The adapted modules' factors."""
        return self.handle.pairs if self.handle is not None else ()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch, of all processes together."""
        return _steps_per_epoch(self.config, len(self.encoded["train"]), self.arguments.world_size)


def make_plan(config: RunConfig, sources: Sources | None = None) -> Plan:
    """Read the data, load the model, adapt it and attach the method.

    Args:
        config: complete.
        sources: where examples and model come from; None reads them from disk.

    Raises:
        RmloraError: whatever would stop the run later; nothing has been written.
    """
    if config.scope != "whole":
        raise ConfigError(f"scope={config.scope} is not one training of the whole model; call rmlora.scopes.run")
    method = choose_method(config)
    transform = method.build(**config.method_args)
    check_settings(config, transform)
    sources = sources or Sources()
    data = sources.data(config)
    num_labels = 1 if data.classes is None else len(data.classes)
    metric = choose_metric(config.training.metric, config.task, num_labels)
    arguments = training_arguments(config, RunFolder(Path(str(config.output))), metric)
    loaded = sources.model(config, data, _seed)
    if config.task == "causal-lm":
        check_completion_task(config, loaded.model)
    encoded = encode_parts(config, data, loaded, sources)
    if method.trains_base:
        model, handle = loaded.model, None
    else:
        num_steps = config.training.epochs * _steps_per_epoch(config, len(encoded["train"]), arguments.world_size)
        model = _adapt(loaded, config, transform, num_steps)
        handle = _attach(model, transform, config)
    return Plan(
        config=config,
        method=method,
        data=data,
        encoded=encoded,
        model=model,
        processor=loaded.processor,
        handle=handle,
        links=describe_links(transform),
        heads=loaded.heads,
        metric=metric,
        counts=count_parameters(model, loaded.heads, 0 if handle is None else handle.num_learnt),
        arguments=arguments,
    )


def check_settings(config: RunConfig, method: Transform) -> None:
    """Refuse a device that will not do, and settings that put the batches of a method with two levels out of step.

    Raises:
        ConfigError: as `check_device`; or batches are grouped by length, or the precision skips steps.
    """
    check_device(config)
    if find_levels(method) is None:
        return
    if config.training.group_by_length:
        raise ConfigError(f"method={config.method} chooses its batches itself; leave training.group_by_length out")
    if config.training.precision == "fp16":
        raise ConfigError(
            f"method={config.method} goes by optimizer steps, and fp16 skips some; use training.precision=bf16 or fp32"
        )


def _adapt(loaded: Loaded, config: RunConfig, transform: Chain, num_steps: int) -> Any:
    """Put the kind of adapter on the model that the method trains."""
    from rmlora.adapting import add_adapter
    from rmlora.run.triplet_config import add_triplets
    from rmlora.run.vector_config import add_vectors

    if transform.adapts == "ADALORA":
        return add_triplets(loaded, config, transform, num_steps)
    if transform.adapts == "VERA":
        return add_vectors(loaded, config, transform)
    return add_adapter(loaded, config)


def check_device(config: RunConfig) -> None:
    """Refuse devices and precisions that would be slow, wrong or impossible.

    Raises:
        ConfigError: fp16 without a GPU, or several GPUs in one process.
    """
    import os

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.training.precision == "fp16" and gpus == 0:
        raise ConfigError("training.precision=fp16 needs a GPU; use bf16 or fp32 on a CPU")
    if gpus > 1 and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            f"{gpus} GPUs are visible to one process, which would split each batch over all of them; start one process "
            "per GPU (torchrun --nproc-per-node N -m rmlora train ...) or set CUDA_VISIBLE_DEVICES=0"
        )


def count_parameters(model: nn.Module, heads: Sequence[str] = (), num_learnt: int = 0) -> Counts:
    """Count parameters by role.

    Args:
        model: a PEFT model, or a plain one.
        heads: modules of a plain model that count as its head; PEFT's wrapping tells a PEFT model's.
        num_learnt: what the method trains beside the model's parameters, such as SoRA's gates; part of the adapter.

    Example:
        >>> count_parameters(nn.Linear(3, 2)).base
        8
    """
    count: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if ".original_module." in name or ".ranknum." in name:  # the head PEFT replaced; AdaLoRA's divisor
            continue
        if "lora_" in name or ".vera_lambda_" in name:
            role = "adapter"
        elif not parameter.requires_grad:
            role = "frozen"
        else:
            is_head = ".modules_to_save." in name or any(name.startswith(f"{head}.") for head in heads)
            role = "head" if is_head else "base"
        count[role] += parameter.numel()
    return Counts(count["adapter"] + num_learnt, count["head"], count["base"], count["frozen"])


def _attach(model: nn.Module, method: Transform, config: RunConfig) -> Attached:
    """Attach the method, for a Trainer that gives it what it needs (`rmlora.run.trainer.two_parts`)."""
    training = config.training
    return attach_replicated(
        model,
        method,
        chunk=training.instance_chunk,
        seed=training.seed,
        fast=training.fast,
        provides=TwoPartBatches.provides,
    )


def _steps_per_epoch(config: RunConfig, num_examples: int, processes: int = 1) -> int:
    """Optimizer steps per epoch, each of a batch from every process."""
    training = config.training
    rounds = math.ceil(math.ceil(num_examples / training.batch_size) / processes)
    return math.ceil(rounds / training.gradient_accumulation_steps)


def _seed(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed)
