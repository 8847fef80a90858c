"""What a run of the classification layer leaves: its result, its predictions, its layer, what it depended on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmlora.config import RunConfig, Task
from rmlora.files import write_bytes
from rmlora.heads.counting import count_parameters
from rmlora.heads.features import Features, hash_model
from rmlora.heads.layer import Layer
from rmlora.heads.measures import spectrum
from rmlora.heads.plan import HeadRun
from rmlora.run.environment import describe_environment
from rmlora.run.folder import RunFolder
from rmlora.run.record import best_row
from rmlora.run.weights import save_adapter
from rmlora.tasks.data import TaskData
from rmlora.tasks.predictions import answers

HEAD, FROZEN = "head.safetensors", "frozen.safetensors"


def summarise(
    run: HeadRun, layer: Layer, rows: Sequence[dict[str, Any]], seconds: float, files: Sequence[str]
) -> dict[str, Any]:
    """Put a finished run into one record: best epoch, last epoch, and what they are to be seen against."""
    config, data = run.config, run.data
    return {
        "model": config.model,
        "scope": "head",
        "method": config.method,
        "method_args": config.method_args,
        "links": run.links,
        "task": config.task,
        "seed": config.training.seed,
        "metric": run.metric,
        "best": best_row(rows, run.metric),
        "last": rows[-1],
        "saved": "last",
        "majority": data.majority,
        "examples": {"train": len(data.train), "eval": len(data.eval)},
        "parameters": count_parameters(layer, run.features.backbone),
        "spectra": {"classifier": [round(value, 7) for value in spectrum(layer).tolist()]},
        "features": {"size": run.features.train.shape[1], "computed": run.features.computed},
        "steps": rows[-1]["step"],
        "seconds": round(seconds, 2),
        "files": list(files),
    }


def write_predictions(place: RunFolder, outputs: Tensor, data: TaskData, task: Task) -> None:
    """Write predictions.safetensors: answers and labels of the held-out part after the last epoch.

    Args:
        place: the run's folder.
        outputs: `(n, classes)`, or `(n, 1)` of a regression.
        data: for the labels.
        task: kind of task.
    """
    from safetensors.numpy import save

    write_bytes(place.predictions, save(answers(outputs.numpy(), data.eval.labels, task)))


@torch.no_grad()
def write_head(folder: Path, layer: Layer, features: Features) -> None:
    """Write head.safetensors: weight `(outputs, d)` and bias of a plain linear layer on the backbone's own features.

    The adapter is merged and the standardisation folded in: W (x - shift) / spread + b = W' x + b'.
    """
    from safetensors.torch import save

    weight = layer.weight().cpu().double() / features.spread.double()
    bias = layer.linear.bias.detach().cpu().double() - weight @ features.shift.double()
    tensors = {"weight": weight.float().contiguous(), "bias": bias.float()}
    write_bytes(folder / HEAD, save(tensors, metadata={"format": "pt"}))


def write_adapter(folder: Path, layer: Layer, features: Features) -> list[str]:
    """Write the adapter as PEFT saves it, and what it is an adapter of; nothing where there is none.

    frozen.safetensors holds W0 (`weight`) and what the layer's inputs were standardised by (`shift`, `spread`).

    Returns:
        Names of the files.
    """
    from safetensors.torch import save

    if layer.handle is None:
        return []
    names = save_adapter(layer.model, folder, state=False)
    frozen = {"weight": layer.W0.cpu().contiguous(), "shift": features.shift, "spread": features.spread}
    write_bytes(folder / FROZEN, save(frozen, metadata={"format": "pt"}))
    return [*names, FROZEN]


def describe_run(config: RunConfig, data: TaskData) -> dict[str, Any]:
    """Collect versions, machine and hashes of model and data, without loading the model."""
    environment = describe_environment(config.model, None, data.files)
    return environment | {"model": {"name": config.model, "files": hash_model(config.model, config.trust_remote_code)}}
