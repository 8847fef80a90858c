"""Quick runs of mixtures."""

from pathlib import Path
from typing import Any

from rmlora.config import RunConfig
from rmlora.config_source import resolve
from tests import runs

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "train_eval_examples": 8, "lr": 1e-2}
LEARNT = {"gates": "gates.safetensors", "linear": "adapter_model.safetensors", "best": "adapter_model.safetensors"}


def config(
    model: Path, files: tuple[Path, Path], output: Path, experts: list[str], combine: str = "gates", **changes: Any
) -> RunConfig:
    mixture = {"experts": experts, "combine": combine} | changes.pop("mixture", {})
    training = QUICK | changes.pop("training", {})
    told = runs.settings(model, files, output, scope="mixture", mixture=mixture, training=training, **changes)
    del told["lora"]
    return resolve(told)
