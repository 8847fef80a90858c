"""The demo from start to end: check, pre-train or load, adapt, write, print."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rmlora.demo.adaptation import Outcome, adapt
from rmlora.demo.base_model import load_base_model, versions
from rmlora.demo.digits import load_digits
from rmlora.demo.plot import plot_comparison
from rmlora.demo.recipe import ARMS, QUICK, Recipe
from rmlora.demo.summary import summarise
from rmlora.errors import ConfigError
from rmlora.files import check_writable, write_text

if TYPE_CHECKING:
    from rich.console import Console

ROWS_NAME = "rows.jsonl"
PLOT_NAME = "demo.png"


def run_demo(output: Path, seeds: int = 3, console: Console | None = None, quick: bool = False) -> tuple[Outcome, ...]:
    """Adapt a small ViT to new digits by every method, print the comparison, and save plot and rows.

    Needs no network: the digits come with scikit-learn, the base model is trained here once. Every method goes
    through PEFT's `get_peft_model`, `rmlora.attach` and a bare AdamW loop, as in anybody's own code. What comes out is
    printed, whatever it is.

    Args:
        output: folder for demo.png and rows.jsonl; made if missing, files of these names are replaced.
        seeds: runs per method, >= 1; with 1 there are no intervals.
        console: where to print; None means the terminal.
        quick: run a few steps of a tiny model, to see that everything works.

    Returns:
        One outcome per method and seed.

    Raises:
        ConfigError: `seeds` is below 1.
        RmloraError: `output` cannot be written; said before any work is done.
    """
    from rich.console import Console

    from rmlora.demo.present import print_comparison

    output = Path(output)
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}; give at least 1 (3 or more for intervals)")
    check_writable(output)
    console = console or Console()
    recipe = QUICK if quick else Recipe()
    digits = load_digits()
    with _quiet_and_reproducible():
        outcomes = _run_all(recipe, seeds, console)
    summaries = summarise(outcomes)
    rows = [outcome.to_dict() | {"recipe": asdict(recipe), "versions": versions()} for outcome in outcomes]
    rows_file = write_text(output / ROWS_NAME, "".join(json.dumps(row) + "\n" for row in rows))
    plot_file = plot_comparison(summaries, output / PLOT_NAME)
    print_comparison(summaries, digits, recipe, console)
    console.print(f"Plot: {plot_file}\nRows: {rows_file}", markup=False, highlight=False, soft_wrap=True)
    return outcomes


def _run_all(recipe: Recipe, seeds: int, console: Console) -> tuple[Outcome, ...]:
    """Make the base model and do every run, with a bar that knows how long it will still take."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    digits = load_digits()
    outcomes: list[Outcome] = []
    with Progress(*columns, console=console, transient=True) as progress:
        first = progress.add_task("pre-training on digits 0 to 4", total=recipe.pretraining.num_steps)
        base, came_from = load_base_model(
            digits, recipe.pretraining, lambda step: progress.update(first, completed=step)
        )
        progress.remove_task(first)
        console.print(came_from, markup=False, highlight=False, soft_wrap=True)
        task = progress.add_task("", total=len(ARMS) * seeds * recipe.num_steps)
        for seed in range(seeds):
            for arm in ARMS:
                progress.update(task, description=f"{arm.label}, seed {seed}")
                outcomes.append(adapt(base, digits, recipe, arm, seed, lambda step: progress.advance(task)))
    order = [arm.label for arm in ARMS]
    return tuple(sorted(outcomes, key=lambda outcome: (order.index(outcome.label), outcome.seed)))


@contextmanager
def _quiet_and_reproducible() -> Iterator[None]:
    """One thread (these matrices are too small for two), the caller's random state kept, and no foreign warnings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        torch.set_num_threads(threads)
