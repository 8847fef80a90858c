"""The study of strength: what the penalty's weight and the share of directions do to accuracy, rank and convergence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrasts import HERE, STRENGTH, read_arms
from matplotlib.ticker import LogLocator, NullFormatter
from pictures import save

from rmlora.compare.arms import Arm

CURVES = HERE / "rows" / STRENGTH / "curves.jsonl"
WEIGHTS_SHOWN = (0.0, 1e-4)  # without a penalty and with the default's: what the mask alone does to convergence
FAST = 3e-3  # the higher of the study's two rates


def written(weight: float) -> str:
    """1e-05 as 1e-5."""
    return f"{weight:.0e}".replace("e-0", "e-") if weight else "0"


def ranks() -> list[int]:
    """The R of the study; none where it has not been run."""
    return sorted({arm.setting.r for arm in read_arms(STRENGTH) if arm.setting.r is not None})


def args_of(arm: Arm) -> tuple[float, float]:
    """Weight of the penalty and share of directions."""
    args = next(iter(arm.runs.values()))["method_args"]
    return args["weight"], args["directions"]


def grid(r: int, measure: str, scale: float) -> tuple[list[float], list[float], np.ndarray]:
    """Weights, shares, and the mean of a measure of the last epoch for each pair, `(weights, shares)`."""
    cells = {
        args_of(arm): scale * float(np.mean([row["last"][measure] for row in arm.runs.values()]))
        for arm in read_arms(STRENGTH)
        if arm.setting.r == r
    }
    weights, shares = (sorted({key[i] for key in cells}) for i in (0, 1))
    return weights, shares, np.array([[cells.get((w, s), np.nan) for s in shares] for w in weights])


def draw_heat_map(folder: Path) -> Path | None:
    """Mean accuracy above, mean effective rank below, by strength of the penalty and share of directions."""
    found = ranks()
    if not found:
        return None
    path = folder / "strength.svg"

    def paint(axes: Any) -> None:
        for place, r in enumerate(found):
            below = axes[len(found) + place]
            _heat(axes[place], grid(r, "eval_accuracy", 100.0), f"R = {r}: accuracy, points", None, None)
            _heat(below, grid(r, "effective_rank", 1.0), f"R = {r}: effective rank of dW", r / 2, r)

    save(path, 2, len(found), (4.6 * len(found), 7.0), paint)
    return path


def _heat(
    axes: Any, table: tuple[list[float], list[float], np.ndarray], title: str, low: float | None, high: float | None
) -> None:
    weights, shares, values = table
    image = axes.imshow(values, cmap="viridis", aspect="auto", vmin=low, vmax=high)
    middle = sum(image.get_clim()) / 2
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not np.isnan(value):
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color="black" if value > middle else "white")
    axes.set_xticks(range(len(shares)), [f"{share:g}" for share in shares])
    axes.set_yticks(range(len(weights)), [written(weight) for weight in weights])
    axes.set_xlabel("share of directions that learn per step")
    axes.set_ylabel("weight of the penalty")
    axes.set_title(title)
    axes.grid(visible=False)


def draw_convergence(folder: Path) -> Path | None:
    """Training loss per epoch, a line per share of directions, a panel per weight and R."""
    found = ranks()
    if not found or not CURVES.is_file():
        return None
    path = folder / "convergence.svg"
    curves = {row["cell"]: row for row in map(json.loads, CURVES.read_text().splitlines())}

    def paint(axes: Any) -> None:
        panels = [(weight, r) for weight in WEIGHTS_SHOWN for r in found]
        for one, (weight, r) in zip(axes, panels, strict=True):
            _lines(
                one, [arm for arm in read_arms(STRENGTH) if arm.setting.r == r and args_of(arm)[0] == weight], curves
            )
            one.set_title(f"R = {r}, weight {written(weight)}")
        axes[0].legend(title="share of directions\n(dashed: rate 1e-3,\nelse 3e-3)")

    save(path, len(WEIGHTS_SHOWN), len(found), (4.0 * len(found), 6.0), paint)
    return path


def _lines(axes: Any, arms: Sequence[Arm], curves: dict[str, Any]) -> None:
    for arm in sorted(arms, key=lambda one: args_of(one)[1]):
        losses = np.mean([curves[row["cell"]]["train_loss"] for row in arm.runs.values()], axis=0)
        slow = next(iter(arm.runs.values()))["lr"] < FAST
        style = "--" if slow else "-"
        axes.plot(np.arange(1, len(losses) + 1), losses, style, label=f"{args_of(arm)[1]:g}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss (mean over seeds)")
