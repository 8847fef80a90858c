"""AdaLoRA in a run: a configuration that keeps lora.r directions per module at the end, as the other methods do."""

from __future__ import annotations

import math
from typing import Any

from rmlora.adapting import lora_config, refuse_too_many_directions
from rmlora.combine import Chain
from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.modeling import Loaded
from rmlora.run.variants import refuse_variants
from rmlora.transforms import AllocateBudget

START = 1.5
"""First rank over target rank, as in the paper's experiments."""


def add_triplets(loaded: Loaded, config: RunConfig, method: Chain, num_steps: int) -> Any:
    """Wrap a model in PEFT's AdaLoRA, sized so that it ends with lora.r triplets per module.

    What the method leaves open is chosen here: the length of the run, a tenth of it before pruning begins and a third
    of it after the last pruning, ten prunings per hundred steps, the paper's weight of 0.1.

    Args:
        loaded: the model; its modules are replaced in place by PEFT's.
        config: of the run.
        method: holds an `AllocateBudget`.
        num_steps: optimizer steps of the run.

    Raises:
        ConfigError: the run is too short to prune in, goes on from an adapter or asks for a variant of LoRA, or PEFT
            refuses the settings.
    """
    import peft

    if config.init_adapter is not None:
        raise ConfigError("method=adalora starts from its own triplets; leave init_adapter out")
    if config.lora.ranks != "equal":
        raise ConfigError("method=adalora finds its own ranks from one that all modules share; leave lora.ranks out")

    refuse_variants("adalora", "ADALORA", config.lora)
    link = next(link for link in method.links if isinstance(link, AllocateBudget))
    plain = lora_config(loaded, config)
    refuse_too_many_directions(loaded.model, plain.target_modules, config.lora.r)
    target = config.lora.r if link.target_r is None else link.target_r
    first = math.ceil(START * target)
    total = num_steps if link.total_steps is None else link.total_steps
    phases = {
        "total_step": total,
        "tinit": total // 10 if link.initial_steps is None else link.initial_steps,
        "tfinal": total // 3 if link.final_steps is None else link.final_steps,
        "deltaT": max(1, min(10, total // 100)) if link.interval is None else link.interval,
        "orth_reg_weight": 0.1 if link.weight is None else link.weight,
    }
    if total - phases["tfinal"] < 2:
        raise ConfigError(f"{total} optimizer steps are too few for method=adalora to prune in; train longer")
    try:
        made = peft.AdaLoraConfig(
            task_type=plain.task_type,
            init_r=first,
            target_r=target,
            lora_alpha=plain.lora_alpha
            / (math.sqrt(plain.r) if plain.use_rslora else plain.r)
            * first,  # the scale of LoRA at lora.r
            lora_dropout=plain.lora_dropout,
            target_modules=plain.target_modules,
            modules_to_save=plain.modules_to_save,
            **phases,
        )
        return peft.get_peft_model(loaded.model, made)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"PEFT refuses AdaLoRA's settings: {' '.join(str(error).split())[:300]}") from error
