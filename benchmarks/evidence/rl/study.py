"""Run what is not in rows.jsonl yet: pre-training, learning rates on a seed of their own, then ten seeds.

    python study.py --work /tmp/rl                    # everything, one process
    python study.py --work /tmp/rl --workers 2 --tasks CartPole --methods LoRA-8 RM-LoRA-8

Every finished run appends a row and is skipped from then on: start it again where it stopped. The pre-trained policies
lie in --work and are trained again, to the same weights on the same machine, where they are missing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from adapting import Adapter, adapt, pretrain
from physics import TASKS

from rmlora import rm_lora

HERE = Path(__file__).resolve().parent
ROWS = HERE / "rows.jsonl"
METHODS = {
    "none": None,
    "full": Adapter(),
    "LoRA-8": Adapter(8),
    "RM-LoRA-8": Adapter(8, rm_lora(directions=4)),
    "LoRA-32": Adapter(32),
    "RM-LoRA-32": Adapter(32, rm_lora(directions=8)),
}
SEEDS = tuple(range(10))
TUNING_SEED = 100
POLICIES = (0, 1)  # pre-training seeds; even seeds adapt the first policy, odd ones the second
TUNING_POLICY = 900

Cell = dict[str, Any]


def main() -> None:
    """Run stage after stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where pre-trained policies lie")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    told = parser.parse_args()
    for task in told.tasks:
        for stage in (pretraining(task), tuning(task, told.methods), reported(task, told.methods)):
            run_all(stage, told.work, told.workers)


def pretraining(task: str) -> Iterator[Cell]:
    """The policy that rates are chosen on, and those that are reported."""
    for seed in (TUNING_POLICY, *POLICIES):
        yield {"kind": "pretrain", "task": task, "seed": seed}


def tuning(task: str, methods: Iterable[str]) -> Iterator[Cell]:
    """Three rates for every method that learns."""
    for method in methods:
        for rate in TASKS[task].rates if METHODS[method] is not None else ():
            yield {"kind": "tune", "task": task, "method": method, "rate": rate, "seed": TUNING_SEED}


def reported(task: str, methods: Iterable[str]) -> Iterator[Cell]:
    """All methods of a seed before the next seed, so that a study cut short has whole seeds."""
    rates = {method: chosen_rate(task, method) for method in methods}
    for seed in SEEDS:
        for method in methods:
            yield {"kind": "run", "task": task, "method": method, "rate": rates[method], "seed": seed}


def chosen_rate(task: str, method: str) -> float:
    """The rate with the best final return on the tuning seed, of equals the largest area; 0 where nothing learns."""
    if METHODS[method] is None:
        return 0.0
    tried = tuned(read_rows(), task, method)
    return max(tried, key=lambda rate: tried[rate])


def tuned(rows: Iterable[Cell], task: str, method: str) -> dict[float, tuple[float, float]]:
    """Final return and area under the curve on the tuning seed, by rate."""
    own = (row for row in rows if row["kind"] == "tune" and (row["task"], row["method"]) == (task, method))
    return {row["rate"]: (row["final"], row["area"]) for row in own if row["rate"] in TASKS[task].rates}


def policy_of(cell: Cell) -> int:
    """The pre-training seed of the policy that a cell adapts."""
    if cell["kind"] == "pretrain":
        return int(cell["seed"])
    return TUNING_POLICY if cell["kind"] == "tune" else POLICIES[cell["seed"] % len(POLICIES)]


def run_all(cells: Iterable[Cell], work: Path, workers: int) -> None:
    """Run the cells without a row; each row is written the moment its run is finished."""
    done = {identity(row) for row in read_rows()}
    left = [cell for cell in cells if identity(cell) not in done or is_missing(cell, work)]
    if workers == 1:
        for cell in left:
            finish(cell, run_one(cell, work))
        return
    with ProcessPoolExecutor(workers) as pool:
        running = {pool.submit(run_one, cell, work): cell for cell in left}
        for future in as_completed(running):
            finish(running[future], future.result())


def run_one(cell: Cell, work: Path) -> Cell:
    """One run, on one thread; `cpu_seconds` is what it took."""
    torch.set_num_threads(1)
    start = time.process_time()
    task, weights = TASKS[cell["task"]], weights_of(cell, work)
    if cell["kind"] == "pretrain":
        found = pretrain(task, cell["seed"], weights)
    else:
        found = adapt(task, weights, METHODS[cell["method"]], cell["rate"], cell["seed"])
    return {**cell, "policy": policy_of(cell), **found, "cpu_seconds": round(time.process_time() - start, 1)}


def weights_of(cell: Cell, work: Path) -> Path:
    """Where a pre-trained policy lies."""
    return work / f"{cell['task']}-{policy_of(cell)}.safetensors"


def is_missing(cell: Cell, work: Path) -> bool:
    """Whether a policy has a row, but its weights are gone."""
    return cell["kind"] == "pretrain" and not weights_of(cell, work).is_file()


def identity(row: Cell) -> tuple[Any, ...]:
    """What makes a run the same run."""
    return tuple(row.get(name) for name in ("kind", "task", "method", "rate", "seed"))


def read_rows() -> list[Cell]:
    """All finished runs."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []


def finish(cell: Cell, row: Cell) -> None:
    """Append the row, unless only lost weights were made again."""
    if identity(cell) not in {identity(one) for one in read_rows()}:
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print({name: row[name] for name in row if name not in ("curve", "layers")}, flush=True)


if __name__ == "__main__":
    main()
