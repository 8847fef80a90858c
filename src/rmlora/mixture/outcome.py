"""What a run of a mixture leaves: its result, its weights, what it depended on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmlora.errors import StateError
from rmlora.experts import save_mixture
from rmlora.mixture.plan import MixtureRun
from rmlora.run.environment import continue_environment, describe_environment
from rmlora.run.inference import count_inference
from rmlora.run.record import best_row
from rmlora.run.weights import save_adapter


def describe_inputs(run: MixtureRun) -> dict[str, Any]:
    """Collect versions, machine and hashes of base, data and experts."""
    plan = run.plan
    told = describe_environment(plan.config.model, plan.model, plan.data.files)
    return told | {"experts": {e.name: {"path": str(e.path), "sha256": e.sha256} for e in run.experts}}


def continue_inputs(before: dict[str, Any], now: dict[str, Any], step: int) -> dict[str, Any]:
    """As `continue_environment`, and for the experts too.

    Raises:
        StateError: model, data or an expert has changed since the run began.
    """
    for name, expert in now["experts"].items():
        was = before.get("experts", {}).get(name, {})
        if was.get("sha256") != expert["sha256"]:
            raise StateError(
                f'--resume: expert "{name}" at "{expert["path"]}" has changed since the run began; start anew with '
                "--overwrite"
            )
    return continue_environment(before, now, step)


def summarise(
    run: MixtureRun, rows: Sequence[dict[str, Any]], selection: dict[str, float], seconds: float
) -> dict[str, Any]:
    """Put a finished run into one record."""
    plan, config = run.plan, run.plan.config
    chosen = {"selection": selection, "chosen": run.used[0].name} if selection else {}
    return {
        "model": config.model,
        "scope": "mixture",
        "method": config.method,
        "method_args": config.method_args,
        "links": plan.links,
        "mixture": {"combine": config.mixture.combine, "experts": [e.name for e in run.experts], **chosen},
        "task": config.task,
        "seed": config.training.seed,
        "metric": plan.metric,
        "best": best_row(rows, plan.metric),
        "last": rows[-1],
        "saved": config.training.save,
        "majority": plan.data.majority,
        "examples": {"train": len(plan.data.train), "eval": len(plan.data.eval)},
        "parameters": {
            "adapter": plan.counts.adapter,
            "head": plan.counts.head,
            "base": 0,
            "trainable": plan.counts.trainable,
            "frozen": plan.counts.frozen,
        },
        "steps": rows[-1]["step"],
        "seconds": round(seconds, 1),
    }


def write_weights(run: MixtureRun, folder: Path) -> list[str]:
    """Write gates.safetensors and mixture.json, or a plain PEFT adapter; return the names of the files."""
    if run.mixture is not None:
        return save_mixture(run.mixture, folder, run.base)
    return save_adapter(run.plan.model, folder, state=False)


def count_used(run: MixtureRun, folder: Path) -> dict[str, int]:
    """Count what is needed at inference: every expert and the gates, or the directions of the one adapter left.

    Args:
        run: finished.
        folder: its weights are written.
    """
    counts = run.plan.counts
    if run.mixture is None:
        return count_inference(folder, counts)
    entries = sum(pair.A.numel() + pair.B.numel() for expert in run.experts for pair in expert.pairs())
    return {"inference_adapter": entries + counts.adapter, "inference": entries + counts.adapter + counts.head}
