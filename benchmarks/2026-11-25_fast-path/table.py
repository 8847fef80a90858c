"""Print README.md's tables from the rows beside this file: python table.py"""

import json
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = {8: (1.08, 1.15), 64: (1.15, 1.4)}


def main() -> None:
    print("| | r, kept | PEFT / floor | RM-LoRA / floor | target | PEFT / RM-LoRA | target | in hooks | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for path in sorted(HERE.glob("rows-*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row["kind"] == "summary":
                print(told(row))


def told(row: dict) -> str:
    settings, ratios, memory = row["settings"], row["ratios"], row["memory"]
    ours, gain = TARGETS[settings["r"]]
    excess = memory["rmlora"]["excess_bytes"] / memory["peft"]["excess_bytes"]
    cells = [
        f"{row['model']}, {settings['dtype']}",
        f"{settings['r']}, {settings['directions']}",
        spread(ratios["peft/floor"]),
        spread(ratios["rmlora/floor"]),
        f"<= {ours}",
        spread(ratios["peft/rmlora"]),
        f">= {gain}",
        f"{row['hook_shares']['rmlora']:.2%}",
        f"{excess:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def spread(ratio: dict) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


if __name__ == "__main__":
    main()
