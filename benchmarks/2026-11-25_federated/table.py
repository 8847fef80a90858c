"""Make the table of this folder's README from rows.jsonl: python table.py"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

HERE = Path(__file__).resolve().parent
ORDER = ("RoLoRA: B and A by turns", "FedAvg of A and B", "B alone", "RoLoRA with RM-LoRA")
COLUMNS = (
    "",
    "rate",
    "seeds",
    "accuracy, %",
    "by seed",
    "minus RoLoRA",
    "eval loss",
    "worst relative error",
    "MB sent",
)


def main() -> None:
    """Print the table."""
    rows = [json.loads(line) for line in (HERE / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["kind"] == "final"]
    rates = {row["label"]: f"{row['lr']:g}" for row in rows}
    of = {label: {row["seed"]: row["last"] for row in rows if row["label"] == label} for label in ORDER}
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for label in ORDER:
        own, first = of[label], of[ORDER[0]]
        seeds = sorted(own)
        accuracy = [100 * own[seed]["eval_accuracy"] for seed in seeds]
        paired = [100 * (own[seed]["eval_accuracy"] - first[seed]["eval_accuracy"]) for seed in seeds]
        cells = (
            label,
            rates[label],
            ", ".join(map(str, seeds)),
            spread(accuracy, ""),
            ", ".join(f"{value:.1f}" for value in accuracy),
            "" if own is first else spread(paired, "+"),
            f"{statistics.mean(own[seed]['eval_loss'] for seed in seeds):.3f}",
            f"{max(own[seed]['relative_averaging_error'] for seed in seeds):.1e}",
            f"{own[seeds[0]]['bytes_up'] / 1e6:.2f}",
        )
        print(f"| {' | '.join(cells)} |")


def spread(values: list[float], sign: str) -> str:
    """Mean, and standard deviation where there is one."""
    deviation = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"


if __name__ == "__main__":
    main()
