"""From a file, key=value words and flags of the command line to one configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmlora.errors import ConfigError


def configure(words: list[str], flags: dict[str, Any], resume: bool = False) -> Any:
    """Bring a file, key=value words and flags together; later ones win.

    Args:
        words: at most one file, and key=value words.
        flags: values by the setting's dotted name.
        resume: with no file, read the one in the output folder.

    Raises:
        ConfigError: two files are named, or a setting is wrong.
    """
    from rmlora.config_source import merge, parse_override, read_config, resolve
    from rmlora.run.choice import all_knobs

    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise ConfigError(f"expected one config file, got {' and '.join(files)}")
    changes = dict(parse_override(word, all_knobs()) for word in words if "=" in word) | flags
    if not files and resume and changes.get("output") and "model" not in changes:
        files = [str(Path(str(changes["output"])) / "config.yaml")]
    settings = read_config(Path(files[0])) if files else {}
    return resolve(merge(settings, changes), files[0] if files else "command line")
