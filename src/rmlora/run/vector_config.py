"""VeRA in a run: PEFT's configuration from the run's."""

from __future__ import annotations

from typing import Any

from rmlora.adapting import lora_config
from rmlora.combine import Chain
from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.modeling import Loaded
from rmlora.run.variants import refuse_variants
from rmlora.transforms import ShareProjections


def add_vectors(loaded: Loaded, config: RunConfig, method: Chain) -> Any:
    """Wrap a model in PEFT's VeRA, on the modules and with the heads that LoRA would have.

    Args:
        loaded: the model; its modules are replaced in place by PEFT's.
        config: of the run; its lora.r holds where the method names none, lora.lora_alpha and lora.scale are not used.
        method: holds a `ShareProjections`.

    Raises:
        ConfigError: the run goes on from an adapter, asks for a variant of LoRA, or PEFT refuses the settings.
    """
    import peft

    if config.init_adapter is not None:
        raise ConfigError("method=vera starts from its own vectors; leave init_adapter out")
    refuse_variants("vera", "VERA", config.lora)
    link = next(link for link in method.links if isinstance(link, ShareProjections))
    plain = lora_config(loaded, config)
    chosen = {
        "d_initial": link.d_initial,
        "projection_prng_key": link.projection_prng_key,
        "save_projection": link.save_projection,
    }
    try:
        made = peft.VeraConfig(
            task_type=plain.task_type,
            r=config.lora.r if link.r is None else link.r,
            vera_dropout=plain.lora_dropout,
            target_modules=plain.target_modules,
            modules_to_save=plain.modules_to_save,
            **{name: value for name, value in chosen.items() if value is not None},
        )
        return peft.get_peft_model(loaded.model, made)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"PEFT refuses VeRA's settings: {' '.join(str(error).split())[:300]}") from error
