"""Choose a learning rate for every arm of `rmlora demo`: the same grid, other seeds, no test example.

    python choose.py [OUTPUT]      # about twenty minutes on one core; writes rows.jsonl and table.md

Each run is scored on the examples of the pool that its seed did not draw. The demo's own seeds (0, 1, 2) and its test
set are not touched.
"""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import torch

from rmlora.demo.adaptation import adapt
from rmlora.demo.base_model import load_base_model, versions
from rmlora.demo.digits import Digits, draw_ids, load_digits
from rmlora.demo.recipe import ARMS, Recipe
from rmlora.files import write_text

GRID = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
SEEDS = range(100, 106)


def without_test(digits: Digits, shots: int, seed: int) -> Digits:
    """Score on what this seed left in the pool."""
    drawn = draw_ids(digits.pool, shots, seed)
    left = torch.ones(len(digits.pool), dtype=torch.bool)
    left[drawn] = False
    return replace(digits, test=digits.pool.take(left.nonzero().flatten()))


def main(output: Path) -> None:
    """Run the grid and write the rows and the table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    digits, recipe = load_digits(), replace(Recipe(), num_evaluations=1)
    base, _ = load_base_model(digits, recipe.pretraining)
    heads = ["arm", *(f"{rate:g}" for rate in GRID), "chosen"]
    rows, table = [], ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for arm in ARMS:
        scores = {}
        for rate in GRID:
            runs = [
                adapt(base, without_test(digits, recipe.shots, seed), recipe, replace(arm, learning_rate=rate), seed)
                for seed in SEEDS
            ]
            scores[rate] = [run.test_accuracy for run in runs]
            rows += [run.to_dict() | {"versions": versions()} for run in runs]
        best = max(GRID, key=lambda rate: fmean(scores[rate]))
        cells = [f"{fmean(each):.1f} +- {stdev(each):.1f}" for each in scores.values()]
        table.append(f"| {arm.label} | " + " | ".join(cells) + f" | {best:g} |")
        print(table[-1], flush=True)
    write_text(output / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_text(output / "table.md", "\n".join(table) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
