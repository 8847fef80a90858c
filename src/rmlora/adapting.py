"""Putting a LoRA adapter on a loaded model: which modules, with what settings, new or from a folder."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from rmlora.config import LoraSettings, RunConfig, Task
from rmlora.errors import AdapterError, ConfigError, nearest
from rmlora.linear_ranks import linear_ranks
from rmlora.modeling import Loaded

# What PEFT itself saves for a kind of task; adding the names again would write them twice.
_PEFT_SAVES: dict[str | None, tuple[str, ...]] = {"SEQ_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
_TASK_TYPES: dict[Task, str | None] = {
    "image-classification": None,
    "question-answering": "QUESTION_ANS",
    "causal-lm": "CAUSAL_LM",
}


def add_adapter(loaded: Loaded, config: RunConfig) -> Any:
    """Wrap a model in a PEFT model whose adapter, and heads, are trained.

    Args:
        loaded: the model; its modules are replaced in place by PEFT's.
        config: of the run; `init_adapter` takes the adapter from a folder, else it is a new one.

    Raises:
        ConfigError: no module matches, or one that matches is new and so has nothing frozen to adapt.
        AdapterError: the adapter of the folder does not fit this model.
    """
    import peft

    if loaded.orphans:
        raise ConfigError(
            f'"{config.model}" has no weights for {", ".join(loaded.orphans[:3])}: they would stay random and no '
            "adapter could carry them; use method=full, or a complete checkpoint"
        )
    if config.init_adapter is not None:
        check_fits(Path(config.init_adapter), loaded, config.model)
        return peft.PeftModel.from_pretrained(loaded.model, config.init_adapter, is_trainable=True)
    try:
        plain = lora_config(loaded, config)
        refuse_too_many_directions(loaded.model, plain.target_modules, config.lora.r)
        return peft.get_peft_model(loaded.model, plain)
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"PEFT refuses the lora settings: {' '.join(str(error).split())[:300]}") from error


def lora_config(loaded: Loaded, config: RunConfig) -> Any:
    """Return the plain PEFT configuration of a run.

    Args:
        loaded: the model.
        config: of the run; lora_alpha left open is 2 r.
    """
    import peft

    settings = config.lora
    targets = target_modules(loaded, settings)
    heads = [name for name in loaded.heads if not any(_is_within(t, name) for t in targets)]
    task_type = task_type_of(config.task)
    kept = [name for name in heads if name not in _PEFT_SAVES.get(task_type, ())]
    return peft.LoraConfig(
        task_type=task_type,
        r=settings.r,
        lora_alpha=alpha(settings),
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        modules_to_save=kept or None,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        init_lora_weights=settings.init_lora_weights,
        **rank_patterns(loaded, targets, settings),
    )


def refuse_too_many_directions(model: nn.Module, targets: Iterable[str], r: int) -> None:
    """Refuse more directions than a linear layer has inputs and outputs: no update of it could use them.

    Args:
        model: without adapter.
        targets: full names of the modules that are to get one.
        r: directions of each.

    Raises:
        ConfigError: names the first such layer and its size.

    Example:
        >>> refuse_too_many_directions(nn.Sequential(nn.Linear(4, 2)), ["0"], r=4)
    """
    for name in targets:
        weight = getattr(model.get_submodule(name), "weight", None)
        if weight is not None and weight.dim() == 2 and r > max(weight.shape):
            rows, columns = weight.shape
            raise ConfigError(
                f"lora.r={r}, but {name} has a weight of {rows} x {columns}; give at most {min(rows, columns)}, or "
                "leave the module out of lora.target_modules"
            )


def rank_patterns(loaded: Loaded, targets: list[str], settings: LoraSettings) -> dict[str, Any]:
    """Return what PEFT's configuration says of single modules' ranks; nothing where all are equal.

    Args:
        loaded: the model.
        targets: full names of the modules that get an adapter.
        settings: of the adapter.

    Raises:
        ConfigError: ranks shall grow with depth, and the modules or the numbers do not allow it.
    """
    if settings.ranks == "equal":
        return {}
    return dict(
        linear_ranks(
            loaded.model,
            targets,
            settings.r,
            alpha(settings),
            ratio=settings.rank_ratio,
            use_rslora=settings.use_rslora,
        )
    )


def task_type_of(task: Task) -> str | None:
    """Name a task as PEFT does; None where PEFT has no name for it.

    Example:
        >>> task_type_of("question-answering")
        'QUESTION_ANS'
    """
    return _TASK_TYPES.get(task, "SEQ_CLS")


def alpha(settings: LoraSettings) -> int | float:
    """Return lora_alpha: 2 r unless it, or the scale, was set, so that alpha / r does not shrink as r grows.

    Raises:
        ConfigError: lora_alpha and scale are both set, and disagree.

    Example:
        >>> alpha(LoraSettings(r=4)), alpha(LoraSettings(r=4, lora_alpha=16)), alpha(LoraSettings(r=4, scale=1))
        (8, 16, 4)
    """
    value = 2 * settings.r if settings.lora_alpha is None else settings.lora_alpha
    if settings.scale is not None:
        scaled = settings.scale * (math.sqrt(settings.r) if settings.use_rslora else settings.r)
        if settings.lora_alpha is not None and not math.isclose(scaled, settings.lora_alpha):
            raise ConfigError(
                f"lora.scale={settings.scale:g} at r={settings.r} means lora_alpha={scaled:g}, "
                f"but lora_alpha is {settings.lora_alpha}: give one of them"
            )
        value = scaled
    return int(value) if float(value).is_integer() else value


def target_modules(loaded: Loaded, settings: LoraSettings) -> list[str]:
    """Name every module that gets an adapter.

    Args:
        loaded: the model.
        settings: "auto" takes every linear layer inside the encoder's repeated blocks; a list takes the modules
            whose name is, or ends in, one of its entries; any other text is a regular expression for the whole
            name.

    Returns:
        Full module names, in the model's order.

    Raises:
        ConfigError: nothing matches (the nearest name is given), or a match lies in a new module.
    """
    wanted = settings.target_modules
    linears = [name for name, module in loaded.model.named_modules() if _is_linear(module)]
    if wanted in ("auto", "all-linear"):
        outside = [name for name in linears if not any(_is_within(name, head) for head in loaded.heads)]
        blocks = [name for name in outside if _is_in_block(loaded.model, name)]
        return blocks or outside or _nothing(wanted, linears)
    names = [name for name, _ in loaded.model.named_modules() if name]
    if isinstance(wanted, str) and not re.fullmatch(r"[\w.]+(,[\w.]+)*", wanted):
        try:
            found = [name for name in names if re.fullmatch(wanted, name)]
        except re.error as error:
            raise ConfigError(f'lora.target_modules: "{wanted}" is not a regular expression: {error}') from error
        found = found or _nothing(wanted, linears)
    else:
        parts = wanted.split(",") if isinstance(wanted, str) else wanted
        for part in parts:
            if not any(_ends_in(name, part) for name in names):
                _nothing(part, linears)
        found = [name for name in names if any(_ends_in(name, part) for part in parts)]
    for name in found:
        if any(_is_within(name, head) for head in loaded.fresh):
            raise ConfigError(
                f'lora.target_modules: "{name}" is newly initialised: it is trained and saved whole, '
                "there is nothing frozen to adapt"
            )
    return found


def check_fits(folder: Path, loaded: Loaded, model_name: str) -> None:
    """Refuse an adapter whose modules or shapes are not those of the model, or that lacks the head it needs.

    Args:
        folder: of the adapter.
        loaded: the model, without any adapter.
        model_name: for the message.

    Raises:
        AdapterError: the folder is damaged, holds no LoRA, or belongs to another model.
    """
    from rmlora.analysis.folder import open_adapter

    adapter = open_adapter(folder)
    if adapter.peft_type != "LORA":
        raise AdapterError(f'"{folder}" is a {adapter.peft_type} adapter; init_adapter takes plain LoRA')
    shapes = {name: tuple(p.shape) for name, p in loaded.model.named_parameters()}
    base = adapter.config.get("base_model_name_or_path")
    keys = [key.removeprefix("base_model.model.") for key in adapter.keys]
    lacking = [head for head in loaded.fresh if not any(_is_within(key, head) for key in keys)]
    if lacking:
        raise AdapterError(
            f'adapter "{folder}" has no "{lacking[0]}", which "{model_name}" has no weights for either: it was '
            "trained for another kind of task"
        )
    for key, tensor in adapter.tensors(adapter.keys).items():
        problem = _misfit(key.removeprefix("base_model.model."), tuple(tensor.shape), shapes)
        if problem is not None:
            made_for = f' was made for "{base}" and' if base else ""
            raise AdapterError(f'adapter "{folder}"{made_for} does not fit "{model_name}": {problem}')


def _misfit(key: str, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Compare one tensor of an adapter with the module it is for; None means it fits."""
    module, side, _ = key.rpartition(".lora_A" if ".lora_A" in key else ".lora_B")
    if not side:
        if "lora_" in key:
            return None
        if key not in shapes:
            return f'the model has no "{key}"'
        return None if shapes[key] == shape else f'"{key}" is {shape}, the model\'s {shapes[key]}'
    weight = shapes.get(f"{module}.weight")
    if weight is None:
        return f'the model has no module "{module}"'
    width = shape[1] if side == ".lora_A" else shape[0]
    # Conv1D and Embedding keep (d_in, d_out), so the width may be either side of the weight
    return None if width in weight[:2] else f'"{module}" is {weight}, {side[1:]} is {shape}'


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _is_in_block(model: nn.Module, name: str) -> bool:
    """Whether a module lies in one of the model's repeated blocks, which transformers keeps in ModuleLists."""
    parts = name.split(".")
    return any(isinstance(model.get_submodule(".".join(parts[:i])), nn.ModuleList) for i in range(1, len(parts)))


def _is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _ends_in(name: str, part: str) -> bool:
    return name == part or name.endswith(f".{part}")


def _nothing(wanted: str, linears: list[str]) -> list[str]:
    leaves = list(dict.fromkeys(name.split(".")[-1] for name in linears if not name.split(".")[-1].isdigit()))
    hint = nearest(wanted, [*leaves, *linears])
    raise ConfigError(
        f'lora.target_modules: no module matches "{wanted}"{hint}; linear layers are {", ".join(leaves[:12])}'
    )
