"""Which variants of LoRA a method's own kind of adapter has no use for; said before a run instead of passed over."""

from __future__ import annotations

from rmlora.config import LoraSettings
from rmlora.errors import ConfigError

_WITHOUT = {
    "ADALORA": ("starts from triplets of its own, without magnitudes", ("use_dora", "init_lora_weights")),
    "VERA": ("has no A and B of its own", ("use_rslora", "use_dora", "init_lora_weights")),
}


def refuse_variants(method: str, adapts: str, settings: LoraSettings) -> None:
    """Raise where a setting changes something that the adapter has not; plain LoRA has all of them.

    Args:
        method: its name, for the message.
        adapts: the PEFT type of the adapter it trains.
        settings: of the adapter.

    Raises:
        ConfigError: names the setting.

    Example:
        >>> refuse_variants("vera", "VERA", LoraSettings(r=256, lora_alpha=512))
        >>> refuse_variants("lora", "LORA", LoraSettings(use_dora=True))
    """
    reason, names = _WITHOUT.get(adapts, ("", ()))
    for name in names:
        value = getattr(settings, name)
        if value is not LoraSettings.model_fields[name].default:
            raise ConfigError(
                f"method={method} {reason}, so lora.{name}={value} means nothing to it; leave one of them out"
            )
