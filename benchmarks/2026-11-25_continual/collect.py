"""Copy what a study found beside this file, print the table of README.md, draw the matrices of seed 0.

python collect.py studies/continual   # after `rmlora compare study.yaml`
python collect.py                     # the table again, from rows.jsonl
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

HERE = Path(__file__).resolve().parent
KEPT = ("rows.jsonl", "chosen.json", "environment.json")
COLUMNS = {
    "average accuracy": "average_accuracy",
    "mean after each task": "anytime_accuracy",
    "forgetting": "forgetting",
    "told the task": "within_accuracy",
}
DRAWN = {"SD-LoRA": "sd-lora", "LoRA on and on": "lora-on-and-on"}


def main() -> None:
    """Do what is asked for."""
    study = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if study is not None:
        for name in KEPT:
            if (study / name).is_file():
                shutil.copyfile(study / name, HERE / name)
    rows = [json.loads(line) for line in (HERE / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["kind"] == "final"]
    print_table(rows)
    if study is not None:
        keep_matrices(study, rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Write means over seeds, in points, with their standard deviations."""
    arms: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        arms[row["label"]].append(row)
    print(f"| | {' | '.join(COLUMNS)} | entries of A and B | rate | seeds |")
    print(f"|---|{'---|' * (len(COLUMNS) + 3)}")
    for label, own in sorted(arms.items(), key=lambda arm: -fmean(r["last"]["average_accuracy"] for r in arm[1])):
        cells = [spread([r["last"][name] for r in own]) for name in COLUMNS.values()]
        kept = fmean(r["parameters"]["inference_adapter"] for r in own)
        seeds = ", ".join(map(str, sorted(row["seed"] for row in own)))
        rates = ", ".join(f"{rate:g}" for rate in sorted({row["lr"] for row in own}))
        print(f"| {label} | {' | '.join(cells)} | {kept:,.0f} | {rates} | {seeds} |")


def spread(values: list[float | None]) -> str:
    """Write a mean and a standard deviation in points."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    return f"{fmean(known):.1f}" + (f" +- {stdev(known):.1f}" if len(known) > 1 else "")


def keep_matrices(study: Path, rows: list[dict[str, Any]]) -> None:
    """Write every matrix into matrices.json, and draw those of seed 0 of some arms."""
    from rmlora.continual.drawing import plot_matrix

    matrices: dict[str, dict[int, Any]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: (row["label"], row["seed"])):
        lines = (study / row["folder"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        matrices[row["label"]][row["seed"]] = [
            [round(a, 4) for a in json.loads(line)["task_accuracy"]] for line in lines
        ]
    (HERE / "matrices.json").write_text(json.dumps(matrices) + "\n", encoding="utf-8")
    for label, name in DRAWN.items():
        plot_matrix(HERE / f"matrix-{name}.png", matrices[label][0], f"{label}, Banking77 in ten tasks, seed 0")


if __name__ == "__main__":
    main()
