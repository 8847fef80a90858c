"""Make the table of this folder's README from rows.jsonl: python table.py"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Print the table."""
    rows = [json.loads(line) for line in (HERE / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    finals = [row for row in rows if row["kind"] == "final"]
    labels = list(dict.fromkeys(row["label"] for row in sorted(finals, key=lambda row: row["label"])))
    seeds = sorted({row["seed"] for row in finals})
    of = {(row["label"], row["seed"]): row for row in finals}
    accuracy = {key: 100 * row["last"]["eval_accuracy"] for key, row in of.items()}
    first = next(label for label in labels if label.startswith("RoLoRA:"))
    columns = ("", "accuracy, %", "by seed", "minus RoLoRA, paired", "eval loss", "worst relative error", "MB sent")
    print(f"| {' | '.join(columns)} |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for label in labels:
        own = [accuracy[label, seed] for seed in seeds]
        paired = [accuracy[label, seed] - accuracy[first, seed] for seed in seeds]
        loss = statistics.mean(of[label, seed]["last"]["eval_loss"] for seed in seeds)
        error = max(of[label, seed]["last"]["relative_averaging_error"] for seed in seeds)
        sent = of[label, seeds[0]]["last"]["bytes_up"] / 1e6
        difference = "" if label == first else f"{spread(paired)} ({sum(d > 0 for d in paired)} of {len(paired)} up)"
        by_seed = ", ".join(f"{value:.1f}" for value in own)
        print(f"| {label} | {spread(own)} | {by_seed} | {difference} | {loss:.3f} | {error:.1e} | {sent:.2f} |")


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):+.1f} +- {statistics.stdev(values):.1f}".lstrip("+")


if __name__ == "__main__":
    main()
