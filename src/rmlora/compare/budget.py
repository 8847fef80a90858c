"""Saying before anything runs what each method may try, and that all may try equally much."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rmlora.compare.agenda import Agenda
from rmlora.compare.contenders import contenders, selects
from rmlora.compare.estimate import estimate_seconds
from rmlora.compare.progress import left_seconds
from rmlora.compare.study import Study
from rmlora.run.wording import duration, say


def show_budget(study: Study, agenda: Agenda, console: Console) -> None:
    """Print each method with its learning rates and runs."""
    own = contenders(study)
    table = Table(title=f"Study {study.name}", title_justify="left", show_edge=False)
    for name in ("method", "knobs", "learning rates", "selection runs", "reported runs"):
        table.add_column(name, justify="right" if name.endswith("runs") else "left", overflow="fold")
    for contender in own:
        groups = [group for group in agenda.groups if group.label == contender.label]
        tries = len(contender.rates) * len(groups) if selects(study) else 0
        adapter = contender.lora.model_dump(exclude_unset=True)
        own_adapter = {f"lora.{name}": v for name, v in adapter.items() if v != getattr(study.lora, name)}
        settings = [*contender.args.items(), *own_adapter.items()]
        knobs = escape(", ".join(f"{name}={value}" for name, value in settings))
        rates = ", ".join(f"{rate:g}" for rate in contender.rates)
        table.add_row(contender.label, knobs or "-", rates, str(tries), str(len(groups) * len(study.seeds)))
    console.print(table)
    say(console, budget_line(study))


def budget_line(study: Study) -> str:
    """Say in a sentence what every method is allowed."""
    count = len(contenders(study)[0].rates)
    per = "per model, task and rank"
    if count == 1:
        return f"Equal budget: every method has 1 learning rate {per}, so nothing is selected."
    chosen = study.selection
    return (
        f"Equal budget: every method tries {count} learning rates {per}, one run each with seed {chosen.seed}, judged "
        f"by the {chosen.by} epoch on {chosen.fraction:.0%} of train; the reported split is not opened. Each reported "
        f"run uses the chosen rate and a fresh seed."
    )


def show_cells(agenda: Agenda, workers: int, console: Console) -> None:
    """Print every cell with what has become of it, and the time that is left as far as it can be known.

    Args:
        agenda: having looked.
        workers: how many cells would be run side by side.
        console: where to print.
    """
    for cell in agenda.cells:
        say(console, f"{cell.id}  {agenda.states.get(cell.id, 'open'):8}  {cell.title}")
    if agenda.waiting:
        say(console, f"and {agenda.waiting} reported runs, whose learning rates the selection has to choose first")
    left = left_seconds(agenda, workers)
    if left is None:
        left = estimate_seconds(agenda, workers)
    told = (
        "not known before a first cell is finished" if left is None else f"about {duration(left)}, {workers} at a time"
    )
    say(console, f"Estimated time: {told}. Dry run: nothing was written.")
