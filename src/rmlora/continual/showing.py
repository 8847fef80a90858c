"""Saying in a terminal what a continual run is about to do, what it found, and what to do next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from shlex import quote
from typing import Any

from rich.console import Console
from rich.table import Table

from rmlora.config_source import dump
from rmlora.continual.plan import ContinualRun, widths_of
from rmlora.continual.settings import OF_SD_LORA
from rmlora.run.folder import RunFolder
from rmlora.run.record import Row
from rmlora.run.wording import duration, say

_HOW = {
    "sd-lora": "SD-LoRA: directions of earlier tasks stay, a magnitude for each is learned",
    "sequential": "one model, trained on and on",
    "joint": "all tasks at once: what learning them one after the other is to be compared with",
}


def show_continual_header(console: Console, run: ContinualRun) -> None:
    """Print in three lines what is learned, in which tasks, on what."""
    config, counts = run.config, run.counts
    say(console, f"{config.method} on {config.model}; {_HOW[config.continual.strategy]}")
    assert run.data.classes is not None
    sizes = sorted({len(task) for task in run.tasks}, reverse=True)
    each = " or ".join(map(str, sizes))
    say(
        console,
        f"{len(run.data.classes)} classes in {len(run.tasks)} tasks of {each}; {len(run.data.train)} examples to train "
        f"on, {len(run.data.eval)} held out",
    )
    say(
        console,
        f"{counts.trainable:,} trainable parameters in the first task, {config.training.epochs} epochs for each; "
        f"output: {config.output}",
    )


def show_continual_plan(console: Console, run: ContinualRun) -> None:
    """Print all a run would do: settings, tasks, directions and steps."""
    say(console, dump(run.config))
    show_continual_header(console, run)
    console.print(_tasks(run))
    if run.is_decoupled:
        widths = widths_of(run.config, len(run.tasks))
        say(
            console,
            f"Directions: {' + '.join(map(str, widths))} = {sum(widths)} in each of {len(run.first.pairs)} modules",
        )
    say(console, f"Trained and saved whole: {', '.join(run.first.heads) or 'nothing'}")
    say(console, "Dry run: nothing was written.")


def stage_line(run: ContinualRun, row: Row, left: float) -> str:
    """Write one stage as one line."""
    stages = len(run.stages)
    what = "all tasks" if stages == 1 else f"task {row['epoch']}/{stages}"
    lost = "" if row["forgetting"] is None else f", forgetting {row['forgetting']:.4f}"
    wait = "" if row["epoch"] == stages else f"  (about {duration(left)} left)"
    return (
        f"{what}  average accuracy {row['average_accuracy']:.4f} over {row['classes']} classes, newest task "
        f"{row['task_accuracy'][-1]:.4f}{lost}{wait}"
    )


def show_continual_result(console: Console, run: ContinualRun, result: dict[str, Any], folder: RunFolder) -> None:
    """Print what came out, where everything lies, and two things to do next."""
    table = Table(title=None, show_edge=False, pad_edge=False)
    for name in ("", "at the end"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("average accuracy over tasks", f"{result['average_accuracy']:.4f}")
    table.add_row("mean of that after each task", f"{result['anytime_accuracy']:.4f}")
    table.add_row("forgetting", "-" if result["forgetting"] is None else f"{result['forgetting']:.4f}")
    table.add_row("accuracy over examples", f"{result['last']['eval_accuracy']:.4f}")
    console.print(table)
    say(console, f"Done in {duration(result['seconds'])}. {folder.path} holds the weights after the last task.")
    for line in _next_steps(run, folder):
        say(console, line)


def _next_steps(run: ContinualRun, folder: RunFolder) -> Sequence[str]:
    settings = run.config.continual
    other = next(name for name in ("joint", "sequential") if name != settings.strategy)
    words = [str(folder.config), f"continual.strategy={other}", f"output={folder.path}-{other}"]
    fields = type(settings).model_fields
    own = [name for name in OF_SD_LORA if getattr(settings, name) != fields[name].default]  # no meaning there
    words += [f"continual.{name}={json.dumps(fields[name].default)}" for name in own]
    return [
        f"Look at the accuracy matrix: {folder.heat_map} (averages: {folder.curves})",
        f"Compare with {other}: rmlora train {' '.join(map(quote, words))}",
    ]


def _tasks(run: ContinualRun) -> Table:
    assert run.data.classes is not None
    table = Table(title="Tasks", title_justify="left", show_edge=False)
    for name in ("task", "classes", "train", "held out", "names"):
        table.add_column(name, justify="left" if name == "names" else "right", overflow="fold")
    for number, task in enumerate(run.tasks, 1):
        counts = [sum(label in set(task) for label in part.labels) for part in (run.data.train, run.data.eval)]
        names = ", ".join(run.data.classes.names[c] for c in task)
        table.add_row(str(number), str(len(task)), *map(str, counts), names)
    return table
