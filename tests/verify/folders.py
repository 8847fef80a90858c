"""Base and adapter folders of tiny models, with factors that do something."""

from pathlib import Path
from typing import Any

import torch

from rmlora.verify.base_model import BaseModel, base_of
from rmlora.verify.certificate import Check
from rmlora.verify.subject import Subject, open_subject
from tests import tiny


def write(folder: Path, name: str, *, size: float = 0.1, config: Any = None, **changes: Any) -> Path:
    """Save a base model and an adapter of it whose A and B are normal with this deviation; return the adapter."""
    model = tiny.adapted(name, config, **changes)
    bare = tiny.TINY[name].build
    torch.manual_seed(0)
    bare().save_pretrained(folder / "base")
    generator = torch.Generator().manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = size * torch.randn(parameter.shape, generator=generator)
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def opened(adapter: Path) -> tuple[Subject, BaseModel]:
    """Open an adapter that `write` wrote."""
    subject = open_subject(adapter)
    return subject, base_of(subject, None)


def failed(checks: list[Check]) -> list[str]:
    """Names of the checks that did not pass."""
    return [check.name for check in checks if not check.passed]
