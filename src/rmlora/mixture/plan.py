"""A run of a mixture, checked and made ready before its folder is touched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rmlora.adapting import task_type_of
from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.experts import (
    Base,
    Expert,
    Mixture,
    identify_base,
    merge_experts,
    mix_experts,
    open_experts,
    refuse_other_base,
    rest_frozen,
)
from rmlora.experts.adding import check_fits
from rmlora.mixture.settings import complete_mixture
from rmlora.modeling import Loaded, check_model_name
from rmlora.run.arguments import training_arguments
from rmlora.run.choice import choose_method
from rmlora.run.encoding import encode_parts
from rmlora.run.folder import RunFolder
from rmlora.run.plan import Counts, Plan, check_device
from rmlora.run.sources import Sources
from rmlora.tasks.metrics import choose_metric


@dataclass(frozen=True)
class MixtureRun:
    """A run, ready to start.

    Attributes:
        plan: what the Trainer needs; its model is a `Mixture`, or a PEFT model with one frozen adapter.
        experts: all of the configuration's.
        used: those that are in the model.
        base: the model, recognised.
    """

    plan: Plan
    experts: tuple[Expert, ...]
    used: tuple[Expert, ...]
    base: Base

    @property
    def mixture(self) -> Mixture | None:
        """The model, where it has gates."""
        return self.plan.model if isinstance(self.plan.model, Mixture) else None


def prepare(config: RunConfig, sources: Sources, only: Sequence[str] | None = None) -> MixtureRun:
    """Check experts, read the data, load the model and put the experts on it; nothing is written.

    Args:
        config: with `scope: mixture`.
        sources: where examples and model come from.
        only: names of experts to be used; None uses all, and with combine=best the first, until one is chosen.

    Raises:
        RmloraError: whatever would stop the run later.
    """
    config = complete_mixture(config)
    experts = _open(config)
    data = sources.data(config)
    outputs = 1 if data.classes is None else len(data.classes)
    metric = choose_metric(config.training.metric, config.task, outputs)
    arguments = training_arguments(config, RunFolder(Path(str(config.output))), metric)
    loaded = sources.model(config, data, _seed)
    base = _check_model(config, loaded, experts)
    encoded = encode_parts(config, data, loaded, sources)
    used = _choose(config, experts, only)
    model = _build(config, loaded, used)
    plan = Plan(
        config=config,
        method=replace(choose_method(config), summary=describe(config, used)),
        data=data,
        encoded=encoded,
        model=model,
        processor=loaded.processor,
        handle=None,
        links=[],
        heads=loaded.heads,
        metric=metric,
        counts=_count(model),
        arguments=arguments,
    )
    return MixtureRun(plan, tuple(experts), tuple(used), base)


def _open(config: RunConfig) -> list[Expert]:
    """Open the experts; what is wrong with them or the machine is known before data or model are read."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ConfigError(f"scope=mixture trains in one process, but {processes} were started; start one")
    check_device(config)
    experts = open_experts(config.mixture.experts)
    check_model_name(config.model)
    refuse_other_base(experts, identify_base(config.model))
    return experts


def _check_model(config: RunConfig, loaded: Loaded, experts: Sequence[Expert]) -> Base:
    """Refuse experts that do not fit the loaded model; return what it is recognised by."""
    if loaded.orphans:
        raise ConfigError(
            f'"{config.model}" has no weights for {", ".join(loaded.orphans[:3])}: use a whole checkpoint'
        )
    base = identify_base(config.model, getattr(loaded.model.config, "_commit_hash", None))
    refuse_other_base(experts, base)
    for expert in experts:
        check_fits(expert, expert.pairs(), loaded.model)
    return base


def describe(config: RunConfig, used: Sequence[Expert]) -> str:
    """Say in a few words what is put together how."""
    names = ", ".join(expert.name for expert in used)
    if config.mixture.combine == "gates":
        return f"a gate per block over {len(used)} frozen adapters ({names})"
    if config.mixture.combine == "linear" or len(used) > 1:
        return f"the mean of {len(used)} frozen adapters ({names}), with a head of its own"
    return f"one frozen adapter ({names}), with a head of its own"


def _choose(config: RunConfig, experts: Sequence[Expert], only: Sequence[str] | None) -> list[Expert]:
    if only is not None:
        return [expert for expert in experts if expert.name in only]
    return list(experts[:1] if config.mixture.combine == "best" else experts)


def _build(config: RunConfig, loaded: Loaded, used: Sequence[Expert]) -> Any:
    """Put the experts on the model; frozen parts run without dropout, the same for all ways."""
    settings = config.mixture
    if settings.combine == "gates":
        return mix_experts(
            loaded.model, used, heads=loaded.heads, temperature=settings.temperature, balance=settings.balance
        )
    model = merge_experts(loaded.model, used, loaded.heads, task_type_of(config.task))
    rest_frozen(model)
    return model


def _count(model: Any) -> Counts:
    """Gates count as the adapter; base and experts are frozen."""
    gates = sum(p.numel() for p in model.gates.parameters()) if isinstance(model, Mixture) else 0
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    replaced = sum(p.numel() for name, p in model.named_parameters() if ".original_module." in name)
    whole = sum(p.numel() for p in model.parameters())
    return Counts(gates, trained - gates, 0, whole - trained - replaced)


def _seed(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed)
