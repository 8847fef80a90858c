"""Make the tables of README.md from rows.jsonl beside this file: `python table.py`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

ROWS = [json.loads(line) for line in Path(__file__).with_name("rows.jsonl").read_text(encoding="utf-8").splitlines()]
WAYS = ("gates", "linear", "best")
T_95 = {2: 4.303, 3: 3.182, 4: 2.776}  # Student's t by degrees of freedom


def found(task: str, label: str) -> dict[int, dict[str, Any]]:
    """Rows of one line of the table, by seed."""
    return {row["seed"]: row for row in ROWS if (row["task"], row["label"]) == (task, label)}


def scores(task: str, label: str) -> dict[int, float]:
    """The last epoch's metric in points, by seed."""
    return {seed: 100 * row["last"][f"eval_{row['metric']}"] for seed, row in sorted(found(task, label).items())}


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.1f} +- {statistics.stdev(values):.1f}"


def difference(a: dict[int, float], b: dict[int, float]) -> str:
    """Mean of the paired differences and its 95 % interval by Student's t."""
    each = [a[seed] - b[seed] for seed in a]
    mean, half = statistics.mean(each), T_95[len(each) - 1] * statistics.stdev(each) / len(each) ** 0.5
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def main() -> None:
    """Print three tables in Markdown, of the tasks that are complete."""
    tasks = [task for task in ("rte", "mrpc", "cola") if all(len(found(task, way)) > 2 for way in WAYS)]
    print("| task, metric, commonest class | gates | linear | best | gates - linear [95 %] | gates - best [95 %] |")
    print("|---|--:|--:|--:|--:|--:|")
    for task in tasks:
        own = {way: scores(task, way) for way in WAYS}
        row = next(iter(found(task, "gates").values()))
        guess = 0 if row["metric"] == "matthews" else 100 * row["majority"]
        cells = [spread(list(own[way].values())) for way in WAYS]
        cells += [difference(own["gates"], own[way]) for way in WAYS[1:]]
        print(f"| {task}, {row['metric']}, {guess:.1f} | {' | '.join(cells)} |")
    print("\n| task | mean gate of rte | of mrpc | of cola | temperature | expert taken as best |")
    print("|---|--:|--:|--:|--:|---|")
    for task in tasks:
        last = [row["last"] for row in found(task, "gates").values()]
        means = [statistics.mean(row[name] for row in last) for name in ("gate_rte", "gate_mrpc", "gate_cola")]
        taken = ", ".join(row["last"]["expert"] for _, row in sorted(found(task, "best").items()))
        temperature = statistics.mean(row["temperature"] for row in last)
        print(f"| {task} | {' | '.join(f'{mean:.3f}' for mean in means)} | {temperature:.2f} | {taken} |")
    print("\n| | trained | in use at inference | seconds a cell |\n|---|--:|--:|--:|")
    for way in WAYS:
        own_rows = [row for row in ROWS if row["label"] == way and row["task"] in tasks]
        counts, seconds = own_rows[0]["parameters"], statistics.mean(row["seconds"] for row in own_rows)
        print(f"| {way} | {counts['trainable']:,} | {counts['inference']:,} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
