"""What a continual run leaves: a row per stage, its adapter, its result, its card."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmlora.continual.learning import Learned
from rmlora.continual.matrix import Matrix, anytime_accuracy, average_accuracy, forgetting
from rmlora.continual.plan import ContinualRun, Stage, widths_of
from rmlora.files import move_in
from rmlora.prune_export import export_pruned
from rmlora.run.inference import count_inference
from rmlora.run.plan import Counts
from rmlora.run.record import Row, refuse_nan
from rmlora.run.weights import save_adapter, save_weights


def stage_row(stage: Stage, done: Learned, matrix: Matrix, within: Sequence[float], step: int) -> Row:
    """Put a stage into a row; it holds nothing that differs between two runs of the same thing.

    Args:
        stage: which.
        done: what it gave.
        matrix: its own row is the last.
        within: the same accuracies among each task's own classes.
        step: optimizer steps of all stages so far.

    Returns:
        `epoch`, the stage's number; `train_*` on examples of its own tasks, `eval_*` on those held out of all seen;
        `task_accuracy`, its row of the matrix; `average_accuracy`, `anytime_accuracy` and `forgetting` so far;
        `within_accuracy`, the mean of `within`; and of sd-lora `magnitudes`, `residual` (mean over modules) and
        `dropped`, the number of modules.
    """
    row: Row = {"epoch": stage.number, "step": step, "running_loss": done.loss}
    row |= {name: done.found[name] for name in sorted(done.found, key=lambda n: (n.split("_")[0] != "train", n))}
    own = matrix[-1][-len(stage.learns) :]
    seen_again = sum(own) / len(own)
    row["gap"] = done.found["train_accuracy"] - seen_again if "train_accuracy" in done.found else None
    row["loss_gap"] = None
    row["classes"] = sum(map(len, stage.seen))
    row["task_accuracy"] = matrix[-1]
    row["within_accuracy"] = sum(within) / len(within)
    row["average_accuracy"] = average_accuracy(matrix)
    row["anytime_accuracy"] = anytime_accuracy(matrix)
    row["forgetting"] = forgetting(matrix)
    if done.learnt.widths:
        row["magnitudes"] = list(done.learnt.magnitudes)
        found = done.residuals.values()
        row["residual"] = sum(found) / len(found) if found else None
        row["dropped"] = len(done.dropped)
    refuse_nan(row)
    return row


def save_last(run: ContinualRun, done: Learned, folder: Path) -> list[str]:
    """Save the last stage's weights as plain LoRA, of all blocks that were not dropped.

    Args:
        run: of which it is the last stage.
        done: what it gave; its model is not changed.
        folder: of the run, which exists.

    Returns:
        Names of the files.
    """
    if run.config.continual.drop_below is None:
        return save_weights(done.plan, done.initial, folder)

    def write(place: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="rmlora-") as whole:
            save_adapter(done.plan.model, Path(whole), state=True)
            export_pruned(whole, place / "pruned")
        for file in list((place / "pruned").iterdir()):
            file.rename(place / file.name)

    return move_in(folder, write)


def count_last(run: ContinualRun, done: Learned) -> Counts:
    """Count parameters in the last stage; of sd-lora earlier blocks are frozen, and magnitudes learn."""
    counts = done.plan.counts
    if not run.is_decoupled:
        return counts
    widths = widths_of(run.config, len(run.stages))
    learning = counts.adapter * widths[-1] // sum(widths)
    return Counts(learning + len(widths), counts.head, counts.base, counts.frozen + counts.adapter - learning)


def summarise(
    run: ContinualRun, rows: Sequence[Row], parameters: Mapping[str, int], seconds: float, files: Sequence[str]
) -> dict[str, Any]:
    """Put a finished run into one record. `best` is the last row: earlier ones are of fewer classes."""
    config, data, last = run.config, run.data, rows[-1]
    assert data.classes is not None
    return {
        "model": config.model,
        "scope": "continual",
        "method": config.method,
        "method_args": config.method_args,
        "links": run.links,
        "task": config.task,
        "seed": config.training.seed,
        "metric": run.metric,
        "best": last,
        "last": last,
        "saved": "last",
        "majority": data.majority,
        "examples": {"train": len(data.train), "eval": len(data.eval)},
        "parameters": dict(parameters),
        "strategy": config.continual.strategy,
        "tasks": [[data.classes.names[c] for c in task] for task in run.tasks],
        **{name: last[name] for name in ("average_accuracy", "anytime_accuracy", "forgetting")},
        "steps": last["step"],
        "seconds": round(seconds, 1),
        "files": list(files),
    }


def parameters_of(counts: Counts, folder: Path) -> dict[str, int]:
    """Count parameters by role, and what is left of them in a saved adapter."""
    by_role = {name: getattr(counts, name) for name in ("adapter", "head", "base", "trainable", "frozen")}
    return by_role | count_inference(folder, counts)


def describe_tasks(run: ContinualRun, matrix: Matrix, result: Mapping[str, Any]) -> str:
    """Return Markdown for the card: tasks and their accuracies, as they were learned and at the end."""
    assert run.data.classes is not None
    names = run.data.classes.names
    lines = ["| task | classes | accuracy when learned | at the end |", "|---|---|---|---|"]
    for number, task in enumerate(run.tasks, 1):
        told = ", ".join(names[c] for c in task[:4]) + (f", ... ({len(task)})" if len(task) > 4 else "")
        when = matrix[min(number, len(matrix)) - 1][number - 1]
        lines.append(f"| {number} | {told} | {when:.4f} | {matrix[-1][number - 1]:.4f} |")
    lost = "" if result["forgetting"] is None else f", forgetting {result['forgetting']:.4f}"
    lines += ["", f"Average accuracy {result['average_accuracy']:.4f}{lost}. `matrix.json` has every number between."]
    how = "at once" if len(matrix) == 1 else "one after the other, each without the examples of the others"
    return f"## Tasks\n\nThe tasks were learned {how}.\n\n" + "\n".join(lines) + "\n"
