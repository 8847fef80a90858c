"""What a federated run leaves when its rounds are over: a plain LoRA adapter with its head, and one record."""

from __future__ import annotations

from typing import Any

from rmlora.federated.progress import Progress
from rmlora.federated.site import Site
from rmlora.run.folder import RunFolder
from rmlora.run.inference import count_inference
from rmlora.run.predictions import kept_reliability
from rmlora.run.record import best_row


def summarise(site: Site, place: RunFolder, progress: Progress, seconds: float, files: list[str]) -> dict[str, Any]:
    """Put a finished run into one record: best round, last round, and what they are to be seen against."""
    config, data, counts, rows = site.config, site.data, site.counts, progress.rows
    sizes = [len(own) for own in site.deal]
    result = {
        "model": config.model,
        "scope": "federated",
        "method": config.method,
        "method_args": config.method_args,
        "links": site.links,
        "task": config.task,
        "seed": config.training.seed,
        "metric": site.metric,
        "best": best_row(rows, site.metric),
        "last": rows[-1],
        "saved": "last",
        "majority": data.majority,
        "examples": {"train": len(data.train), "eval": len(data.eval), "clients": sizes},
        "parameters": {
            "adapter": counts.adapter,
            "head": counts.head,
            "base": counts.base,
            "trainable": counts.trainable,
            "frozen": counts.frozen,
        },
        "dropped": sum(len(row["dropped"]) for row in rows),
        "bytes_down": sum(row["bytes_down"] for row in rows),
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "worst_relative_averaging_error": max(row["relative_averaging_error"] for row in rows),
        "round_seconds": progress.seconds,
        "steps": rows[-1]["step"],
        "seconds": round(seconds, 1),
        "files": files,
    }
    result["parameters"] |= count_inference(place.path, counts)
    return result | kept_reliability(place)
