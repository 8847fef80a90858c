"""Which settings of a run mean anything where only the classification layer is trained."""

from __future__ import annotations

from rmlora.config import RunConfig, read_setting
from rmlora.errors import ConfigError
from rmlora.run.choice import choose_method, complete

DEFAULT_LR = 1e-3
"""Of every method: the layer of a run without adapter is new, too, and needs no gentler rate."""

TASKS = ("text-classification", "text-regression", "image-classification")

ALLOWED: dict[str, tuple[object, ...]] = {
    "init_adapter": (None,),
    "lora.use_dora": (False,),
    "lora.ranks": ("equal",),
    "lora.target_modules": ("auto",),
    "lora.init_lora_weights": (True, "gaussian", "orthogonal"),
    "training.gradient_accumulation_steps": (1,),
    "training.optimizer": ("adamw_torch_fused", "adamw_torch"),
    "training.precision": ("fp32",),
    "training.gradient_checkpointing": (False,),
    "training.evaluate_every": (1,),
    "training.save": ("last",),
    "training.report_to": ([],),
}
"""Values the loop over cached features can honour; anything else is refused rather than ignored."""


def complete_head(config: RunConfig) -> RunConfig:
    """Fill in what is left open, and refuse what would silently not happen.

    Args:
        config: as resolved; not mutated.

    Raises:
        ConfigError: `scope` is not head, or a setting has no meaning there.

    Example:
        >>> complete_head(RunConfig(model="m", scope="head", method="lora")).training.lr
        0.001
    """
    if config.scope != "head":
        raise ConfigError(f'scope is "{config.scope}"; only scope=head trains on cached features')
    if config.task not in TASKS:
        raise ConfigError(f"scope=head needs a task with one label per example ({', '.join(TASKS)}), not {config.task}")
    method = choose_method(config)
    if method.adapts != "LORA":
        raise ConfigError(f"scope=head trains plain LoRA factors; method {config.method} has none: choose another")
    needs = method.build(**config.method_args).needs
    if needs:
        raise ConfigError(f"scope=head cannot give method {config.method} {', '.join(needs)}; use scope=whole")
    for name, values in ALLOWED.items():
        found = read_setting(config, name)
        if not any(found == value and type(found) is type(value) for value in values):
            allowed = " or ".join(map(str, values))
            raise ConfigError(
                f"scope=head has no {name}={found}: the layer is trained in fp32 by AdamW; give {allowed}"
            )
    if config.training.lr is None:
        config = config.model_copy(update={"training": config.training.model_copy(update={"lr": DEFAULT_LR})})
    return complete(config)
