"""VeRA in a run: PEFT's configuration from the run's, and what of the run's VeRA has no use for."""

from __future__ import annotations

from typing import Any

from rmlora.adapting import lora_config
from rmlora.combine import Chain
from rmlora.config import LoraSettings, RunConfig
from rmlora.errors import ConfigError
from rmlora.modeling import Loaded
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
    refuse_variants(config.lora)
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


def refuse_variants(settings: LoraSettings) -> None:
    """Raise where a setting changes A, B or their scale, which VeRA has not.

    Raises:
        ConfigError: names the setting.

    Example:
        >>> refuse_variants(LoraSettings(r=256, lora_alpha=512))
    """
    asked = {
        "use_rslora": settings.use_rslora,
        "use_dora": settings.use_dora,
        "init_lora_weights": settings.init_lora_weights is not True,
    }
    for name in (name for name, is_asked in asked.items() if is_asked):
        raise ConfigError(f"method=vera has no A and B of its own, so lora.{name} means nothing to it; leave one out")
