"""Print README.md's table from the rows beside this file: python table.py"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).parent


def main() -> None:
    """Print a line per way, over the seeds."""
    rows = {name: read(HERE / f"rows-{name}.jsonl") for name in ("search", "gradient")}
    seeds = {row["seed"] for row in rows["search"]}
    rows["gradient"] = [row for row in rows["gradient"] if row["seed"] in seeds]
    ways = {
        "no adapter, classifier fitted": [row["start"] for row in rows["search"]],
        "CMA-ES, 600 candidates": [row["last"] for row in rows["search"]],
        "LoRA by gradients, 60 steps": [row["last"] for row in rows["gradient"]],
    }
    print("| | train loss | train accuracy | held-out accuracy | held-out loss | s per run |")
    print("|---|---|---|---|---|---|")
    for way, found in ways.items():
        names = ("train_loss", "train_accuracy", "eval_accuracy", "eval_loss")
        cells = [spread([row[name] for row in found]) for name in names]
        seconds = rows["gradient" if "gradients" in way else "search"]
        cells.append("" if "no adapter" in way else f"{mean(row['seconds'] for row in seconds):.0f}")
        print(f"| {way} | {' | '.join(cells)} |")
    print(f"\nAlways naming the commonest class: {rows['search'][0]['majority']:.4f}. Seeds: {len(rows['search'])}.")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spread(values: list[float]) -> str:
    return f"{mean(values):.4f} ({stdev(values):.4f})"


if __name__ == "__main__":
    main()
