"""A continual run, checked before its folder is touched, and the plan of each of its stages."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.trainer_utils import IntervalStrategy

from rmlora.attach import attach
from rmlora.config import RunConfig
from rmlora.continual.learnt import Learnt, put_back
from rmlora.continual.partition import Tasks, check_examples, split_classes
from rmlora.continual.settings import complete_continual
from rmlora.continual.task_sources import TaskSources
from rmlora.errors import ConfigError, RmloraWarning
from rmlora.run.choice import describe_links
from rmlora.run.folder import RunFolder
from rmlora.run.plan import Described, Plan, make_plan
from rmlora.run.sources import KeptSources, Sources
from rmlora.transforms.scale_blocks import ScaleBlocks


@dataclass(frozen=True)
class Stage:
    """One training, and what it is measured on.

    Attributes:
        number: from 1.
        learns: tasks whose examples are trained on.
        seen: those, and all before.
    """

    number: int
    learns: Tasks
    seen: Tasks


@dataclass(frozen=True, eq=False)
class ContinualRun(Described):
    """A run, ready to start.

    Attributes:
        tasks: classes of each task.
        sources: where examples and model come from.
        first: the plan of the first stage.
    """

    tasks: Tasks
    sources: Sources
    first: Plan

    @property
    def folder(self) -> RunFolder:
        """Where it is written."""
        return RunFolder(Path(str(self.config.output)))

    @property
    def is_decoupled(self) -> bool:
        """Whether it is SD-LoRA."""
        return self.config.continual.strategy == "sd-lora"

    @property
    def stages(self) -> list[Stage]:
        """One for each task; one for all of them under strategy joint."""
        return _stages(self.config, self.tasks)

    def place(self, stage: Stage) -> RunFolder:
        """Where a stage works; deleted when it is finished."""
        return RunFolder(self.folder.checkpoints / f"stage-{stage.number:03d}")


def prepare(config: RunConfig, sources: Sources | None = None) -> ContinualRun:
    """Check a configuration, read its data, split its classes and build the model of the first stage.

    Args:
        config: with `scope: continual`.
        sources: where examples and model come from; None reads each once.

    Raises:
        RmloraError: whatever would stop the run later; nothing has been written.
    """
    config = complete_continual(config)
    sources = sources or KeptSources()
    data = sources.data(config)
    assert data.classes is not None
    tasks = split_classes(data.classes.names, config.continual, config.training.seed)
    check_examples(tasks, data)
    first = plan_stage(config, sources, _stages(config, tasks)[0], None)
    if config.continual.strategy == "sd-lora":
        _refuse_too_many(config, first, len(tasks))
    told = {name: getattr(first, name) for name in ("method", "links", "metric", "counts")}
    return ContinualRun(config=config, data=data, tasks=tasks, sources=sources, first=first, **told)


def plan_stage(config: RunConfig, sources: Sources, stage: Stage, before: Learnt | None) -> Plan:
    """Build the model of a stage as its training begins: what was learnt before, and what is new.

    Args:
        config: of the whole run, complete.
        sources: where examples and model come from.
        stage: which.
        before: what the stage before handed over; None for the first.

    Raises:
        RmloraError: as `rmlora.run.plan.make_plan`.
    """
    own = stage_config(config, stage)
    plan = make_plan(own, TaskSources(sources, config, stage.learns, stage.seen))
    plan.arguments.eval_strategy = IntervalStrategy.NO  # once, when it is learned
    if config.continual.strategy == "sd-lora":
        plan = _decoupled(plan, config, stage, before)
    if before is not None:
        put_back(before.frozen() if before.widths else before, plan.model, plan.handle)
    return plan


def stage_config(config: RunConfig, stage: Stage) -> RunConfig:
    """Return the configuration of an ordinary run that trains one stage."""
    seed = config.training.seed
    if stage.number > 1:  # its own order of batches, dropout, masks and new directions
        seed = random.Random(f"{seed}, stage {stage.number}").randrange(2**31)
    training = config.training.model_copy(update={"seed": seed, "save_every_epoch": False})
    lora = config.lora
    if config.continual.strategy == "sd-lora":
        r, scale = sum(widths_of(config, stage.number)), float(lora.lora_alpha or 0) / lora.r
        lora = lora.model_copy(update={"r": r, "scale": scale, "lora_alpha": None})
    output = RunFolder(Path(str(config.output))).checkpoints / f"stage-{stage.number:03d}"
    settled = {"scope": "whole", "training": training, "lora": lora, "output": str(output)}
    return config.model_copy(update=settled)


def widths_of(config: RunConfig, stages: int) -> tuple[int, ...]:
    """Return the directions of each block after some stages of sd-lora.

    Example:
        >>> from rmlora.sections import ContinualSettings
        >>> widths_of(RunConfig(model="m", continual=ContinualSettings(ranks=[8, 4])), stages=3)
        (8, 4, 4)
    """
    ranks = config.continual.ranks or [config.lora.r]
    return tuple((ranks + ranks[-1:] * stages)[:stages])


def _stages(config: RunConfig, tasks: Tasks) -> list[Stage]:
    if config.continual.strategy == "joint":
        return [Stage(1, tasks, tasks)]
    return [Stage(t, tasks[t - 1 : t], tasks[:t]) for t in range(1, len(tasks) + 1)]


def _decoupled(plan: Plan, config: RunConfig, stage: Stage, before: Learnt | None) -> Plan:
    """Attach SD-LoRA's link in place of plain LoRA's empty chain."""
    settings, seed = config.continual, plan.config.training.seed
    absorbed = tuple((name, (*values, 0.0)) for name, values in before.absorbed.items()) if before is not None else ()
    link = ScaleBlocks(widths_of(config, stage.number), settings.start, settings.rate, absorbed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RmloraWarning)  # the empty chain has seen no step
        plan.handle.detach()
    handle = attach(plan.model, link, seed=seed, fast=config.training.fast)
    return replace(plan, handle=handle, links=describe_links(handle.method))


def _refuse_too_many(config: RunConfig, first: Plan, tasks: int) -> None:
    """Refuse more directions at the end than the smallest adapted module has room for."""
    total = sum(widths_of(config, tasks))
    pair = min(first.pairs, key=lambda pair: max(pair.A.shape[1], len(pair.B)))
    room = max(pair.A.shape[1], len(pair.B))
    if total > room:
        raise ConfigError(
            f"continual: {tasks} tasks make {total} directions, but {pair.name} has a weight of {len(pair.B)} x "
            f"{pair.A.shape[1]}; give fewer (lora.r, continual.ranks) or fewer tasks"
        )
