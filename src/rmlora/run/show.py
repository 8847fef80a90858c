"""Saying in a terminal what a run is about to do, what it found, and what to do next."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from rich.table import Table

from rmlora.config_source import dump
from rmlora.errors import StateError
from rmlora.run.folder import RunFolder
from rmlora.run.plan import Described, Plan
from rmlora.run.wording import duration, say
from rmlora.tasks.glue import difference, official


def show_header(console: Console, plan: Described) -> None:
    """Print in three lines what is trained on what."""
    config, counts, held_out = plan.config, plan.counts, len(plan.data.eval)
    guess = f"; the commonest class scores {plan.data.majority:.4f}" if plan.data.majority else ""
    told = difference(config.data.glue, held_out) if config.data.glue else None
    other = f"; {told}" if told else ""
    worth = "" if config.task == "causal-lm" else f" (one is {100 / held_out:.2f} points)"
    say(console, f"{config.method} on {config.model}: {plan.method.summary}")
    say(
        console,
        f"{len(plan.data.train)} examples to train on, {held_out} held out{worth}{guess}{other}",
    )
    say(
        console,
        f"{counts.trainable:,} trainable parameters ({counts.share:.2%} of the model), "
        f"{plan.steps_per_epoch} steps an epoch, {config.training.epochs} epochs; output: {config.output}",
    )


def show_plan(console: Console, plan: Described, notes: Sequence[str] = ()) -> None:
    """Print all a run would do: settings, parameters, modules and steps.

    Args:
        console: where.
        plan: of the run.
        notes: lines about what it trains, where that is not the modules of a whole model.
    """
    say(console, dump(plan.config))
    console.print(_parameters(plan))
    for note in notes:
        say(console, note)
    if isinstance(plan, Plan) and plan.pairs:
        console.print(_modules(plan))
        say(console, f"Trained and saved whole: {', '.join(plan.heads) or 'nothing'}")
    for link in plan.links:
        values = ", ".join(f"{name}={value}" for name, value in link.items() if name != "link")
        say(console, f"Method {plan.method.name}: {link['link']}({values})")
    epochs = plan.config.training.epochs
    say(
        console,
        f"Data: {len(plan.data.train)} examples to train on, {len(plan.data.eval)} held out; "
        f"columns {', '.join(plan.data.columns)}",
    )
    say(console, f"Steps: {plan.steps_per_epoch} an epoch, {plan.steps_per_epoch * epochs} in all")
    say(console, "Dry run: nothing was written.")


def show_result(console: Console, plan: Described, result: dict[str, Any], folder: RunFolder) -> None:
    """Print best and last epoch, where everything lies, and two things to do next."""
    metric = plan.metric
    table = Table(title=None, show_edge=False, pad_edge=False)
    for name in ("", "epoch", f"eval {metric}", f"train {metric}", "gap", "eval loss", "effective rank"):
        table.add_column(name, justify="right" if name else "left")
    for which in ("best", "last"):
        row = result[which]
        cells = (row[f"eval_{metric}"], row.get(f"train_{metric}"), row["gap"], row["eval_loss"])
        rank = row.get("effective_rank")
        table.add_row(
            which,
            str(row["epoch"]),
            *("-" if cell is None else f"{cell:.4f}" for cell in cells),
            "-" if rank is None else f"{rank:.2f}",
        )
    console.print(table)
    if plan.config.data.glue is not None:
        found = official(plan.config.data.glue, result["last"])
        values = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        say(console, f"GLUE {plan.config.data.glue}, last epoch: {values}.")
    if plan.metric == "accuracy" and result["best"]["eval_accuracy"] <= result["majority"]:
        say(console, f"No epoch is better than always naming the commonest class ({result['majority']:.4f}).")
    saved = f"the {result['saved']} epoch's weights"
    say(console, f"Done in {duration(result['seconds'])}. {folder.path} holds {saved}.")
    for line in next_steps(plan, folder.path):
        say(console, line)


def show_finished(folder: RunFolder, console: Console) -> dict[str, Any]:
    """Say that nothing is left to do for a run, and return its result.

    Raises:
        StateError: result.json is damaged.
    """
    try:
        result = dict(json.loads(folder.result.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StateError(f'"{folder.result}" is damaged; start the run anew with --overwrite') from error
    say(console, f"The run in {folder.path} is finished; nothing to do.")
    return result


def next_steps(plan: Described, path: Path) -> list[str]:
    """Name two things to do after a run."""
    if plan.config.scope == "mixture":
        return [f"Look at the curves: {path / 'curves.png'}", f"Predict: rmlora predict {quote(str(path))}"]
    compare = next(m for m in ("lora", "rm-lora") if m != plan.config.method)
    settings, output = quote(str(path / "config.yaml")), quote(f"output={path}-{compare}")
    again = f"rmlora train {settings} method={compare} method_args={{}} {output}"
    if plan.method.trains_base:
        return [f"Look at the curves: {path / 'curves.png'}", f"Compare with {compare}: {again} lr=1e-3"]
    if plan.method.adapts == "VERA":
        return [f"Look at the curves: {path / 'curves.png'}", f"Compare with {compare}: {again} lr=1e-3"]
    return [
        f"Look into the adapter: rmlora inspect {quote(str(path))} (curves: {path / 'curves.png'})",
        f"Compare with {compare}: {again}",
    ]


def _parameters(plan: Described) -> Table:
    counts = plan.counts
    kind = "adapter (d, b)" if plan.method.adapts == "VERA" else "adapter (A, B)"
    kind = "gates" if plan.config.scope == "mixture" else kind
    table = Table(title="Parameters", title_justify="left", show_edge=False)
    table.add_column("part")
    table.add_column("number", justify="right")
    rows = {
        kind: counts.adapter,
        "head": counts.head,
        "pretrained, trained": counts.base,
        "T: trainable at the start": counts.trainable,
        "frozen": counts.frozen,
    }
    for name, number in rows.items():
        if number or name.startswith("T"):
            table.add_row(name, f"{number:,}")
    table.add_row("T, share of the model", f"{counts.share:.3%}")
    return table


def _modules(plan: Plan) -> Table:
    """List adapted modules by their last names: 12 layers' worth of one projection is one row."""
    groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for pair in plan.pairs:
        kind = ".".join("*" if part.isdigit() else part for part in pair.name.split("."))
        groups[(kind, pair.A.shape[1], pair.B.shape[0], pair.r, pair.scale)].append(pair.name)
    table = Table(title=f"Adapted modules: {len(plan.pairs)} pairs (A, B)", title_justify="left", show_edge=False)
    for name in ("module", "number", "d_in", "d_out", "r", "scale"):
        table.add_column(name, justify="left" if name == "module" else "right", overflow="fold")
    for (kind, d_in, d_out, r, scale), names in groups.items():
        table.add_row(kind, str(len(names)), str(d_in), str(d_out), str(r), f"{scale:g}")
    return table
