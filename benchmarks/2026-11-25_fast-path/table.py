"""Print README.md's two tables from the rows beside this file: python table.py"""

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


def show_operators(path: Path, top: int = 6) -> None:
    """Print by how many ms of self time the operators of a step differ from the floor's, the largest first."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "operator":
            of_model = found.setdefault(row["model"], {})
            of_model.setdefault(row["contender"], {})[row["operator"]] = 1000 * row["self_s"]
    print("| | floor, ms | operator | PEFT | RM-LoRA |")
    print("|---|---|---|---|---|")
    for model, of in found.items():
        floor, ours = of["floor"], of["rmlora"]
        more = {name: ours.get(name, 0.0) - floor.get(name, 0.0) for name in floor | ours}
        for name in sorted(more, key=lambda name: -abs(more[name]))[:top]:
            peft = of["peft"].get(name, 0.0) - floor.get(name, 0.0)
            print(f"| {model} | {sum(floor.values()):.0f} | `{name}` | {peft:+.1f} | {more[name]:+.1f} |")


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
        f"{row['hook_shares']['rmlora']['median']:.2%}",
        f"{excess:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def spread(ratio: dict) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


if __name__ == "__main__":
    main()
    show_operators(HERE / "rows-float32-r8.jsonl")
