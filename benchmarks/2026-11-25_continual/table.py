"""Print the table of README.md from rows.jsonl: python table.py"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

COLUMNS = {
    "average accuracy": "average_accuracy",
    "after each task": "anytime_accuracy",
    "forgetting": "forgetting",
    "within its task": "within_accuracy",
}


def main() -> None:
    """Write means over seeds, in points, with their standard deviations."""
    lines = (Path(__file__).parent / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    arms: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in map(json.loads, lines):
        arms[row["label"]].append(row)
    print(f"| | {' | '.join(COLUMNS)} | saved entries of A and B | seeds |")
    print(f"|---|{'---|' * (len(COLUMNS) + 2)}")
    for label, rows in sorted(arms.items(), key=lambda arm: -fmean(r["last"]["average_accuracy"] for r in arm[1])):
        cells = [spread([r["last"][name] for r in rows]) for name in COLUMNS.values()]
        kept = fmean(r["parameters"]["inference_adapter"] for r in rows)
        print(f"| {label} | {' | '.join(cells)} | {kept:,.0f} | {len(rows)} |")


def spread(values: list[float | None]) -> str:
    """Write a mean and a standard deviation in points."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    return f"{fmean(known):.1f}" + (f" +- {stdev(known):.1f}" if len(known) > 1 else "")


if __name__ == "__main__":
    main()
