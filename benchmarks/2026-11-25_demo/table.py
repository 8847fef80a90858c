"""Print README.md's table from the raw rows: python table.py"""

import json
from pathlib import Path

from rmlora.compare.statistics import t_interval

HERE = Path(__file__).parent
RUNS = {
    "2026-11-22": HERE.parent / "2026-11-22_demo" / "rows.jsonl",
    "another processor": HERE / "rows-reference.jsonl",
    "and the fast path": HERE / "rows-fast.jsonl",
}


def main() -> None:
    found = {name: read(path) for name, path in RUNS.items()}
    print("| | " + " | ".join(f"{name}: accuracy | difference to LoRA r=4" for name in RUNS) + " |")
    print("|---|" + "---|---|" * len(RUNS))
    for label in found["2026-11-22"]:
        cells = []
        for rows in found.values():
            values, base = rows[label], rows["LoRA r=4"]
            cells.append(f"{t_interval(list(values.values())).estimate:.1f}")
            gap = t_interval([values[seed] - base[seed] for seed in base])
            cells.append("" if label == "LoRA r=4" else f"{gap.estimate:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]")
        print(f"| {label} | {' | '.join(cells)} |")


def read(path: Path) -> dict[str, dict[int, float]]:
    rows: dict[str, dict[int, float]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["label"], {})[row["seed"]] = row["test_accuracy"]
    return rows


if __name__ == "__main__":
    main()
