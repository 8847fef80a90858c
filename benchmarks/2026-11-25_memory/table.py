"""Print the table of README.md from the rows beside it: python table.py."""

import json
from pathlib import Path

MIB = 2**20

print("| | r, kept | PEFT above the floor, MiB | RM-LoRA, MiB | ratio | of RM-LoRA's, what stays after the step, MiB |")
print("|---|---|---|---|---|---|")
for file in sorted(Path(__file__).parent.glob("rows-*.jsonl")):
    _, dtype, r = file.stem.split("-")
    for line in file.read_text().splitlines():
        row = json.loads(line)
        if "ratios" not in row:
            continue
        peft, ours = row["memory"]["peft"], row["memory"]["rmlora"]
        cells = [f"{m / MIB:.1f}" for m in (peft["excess_bytes"], ours["excess_bytes"])]
        ratio, stays = ours["excess_bytes"] / peft["excess_bytes"], ours["stays_bytes"] / MIB
        kept = {"8": 4, "64": 8}[r]
        print(f"| {row['model']}, {dtype} | {r}, {kept} | {cells[0]} | {cells[1]} | {ratio:.2f} | {stays:.1f} |")
