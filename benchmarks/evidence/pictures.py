"""The figures of the page, as SVG files on white."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from contrasts import FEW_SHOT, HERE, SIZES, TIER1, few_shot_arms, read_arms
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from rmlora.compare.arms import Arm
from rmlora.compare.statistics import pair_by_seed, t_interval

STYLE = {"svg.hashsalt": "evidence", "svg.fonttype": "none", "font.size": 8, "axes.grid": True, "grid.alpha": 0.3}
RANKS = (8, 16, 32, 64)
FAST_PATH = HERE.parent / "2026-11-25_fast-path"
COLOURS = dict(zip(RANKS, ("#0a84c6", "#009e73", "#c99700", "#d55e00"), strict=True))


def save(path: Path, rows: int, columns: int, size: tuple[float, float], paint: Callable[[Any], None]) -> None:
    """Draw a grid of panels into a file; `paint` is given the axes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for one in axes:
            one.spines[["top", "right"]].set_visible(False)
        paint(axes)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def differences(arms: Sequence[Arm], baseline: str) -> list[tuple[str, float, float, float]]:
    """Each arm's paired difference to the baseline in points, with the ends of its interval."""
    base = next((arm for arm in arms if arm.label == baseline), None)
    found = []
    for arm in arms if base is not None else ():
        if arm is base:
            continue
        _, paired = pair_by_seed(arm.values("last"), base.values("last"))  # type: ignore[union-attr]
        if len(paired) > 1:
            interval = t_interval(100 * paired)
            found.append((arm.label, interval.estimate, interval.low, interval.high))
    return found


def forest(axes: Any, found: Sequence[tuple[str, float, float, float]], title: str) -> None:
    """One line per method, best at the top."""
    ordered = sorted(found, key=lambda one: one[1])
    for place, (_, estimate, low, high) in enumerate(ordered):
        colour = "#0b7a4b" if low > 0 else "#b3261e" if high < 0 else "#5a636e"
        axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
        axes.plot(estimate, place, "o", color=colour, markersize=4)
    axes.axvline(0, color="#1b1f24", linewidth=0.8)
    axes.set_yticks(range(len(ordered)), [one[0] for one in ordered])
    axes.set_xlabel("accuracy minus LoRA's, points")
    axes.set_title(title)


def draw_forest(folder: Path) -> Path | None:
    """Paired differences to LoRA, classification layer, one panel per R."""
    arms = read_arms(TIER1)
    if not arms:
        return None
    path = folder / "forest-tier1.svg"

    def paint(axes: Any) -> None:
        for one, r in zip(axes, RANKS, strict=True):
            forest(one, differences([arm for arm in arms if arm.setting.r == r], "LoRA"), f"R = {r}")

    save(path, 2, 2, (10, 8), paint)
    return path


def draw_few_shot(folder: Path) -> Path | None:
    """The same for whole models on few examples, R = 8 and 64 beside one another."""
    panels = [(task, differences(few_shot_arms(task), "LoRA")) for task in FEW_SHOT]
    panels = [(task, found) for task, found in panels if found]
    if not panels:
        return None
    path = folder / "forest-tier2.svg"

    def paint(axes: Any) -> None:
        for one, (task, found) in zip(axes, panels, strict=False):
            forest(one, found, f"{task}: minus LoRA R = 8")

    save(path, -(-len(panels) // 2), min(len(panels), 2), (10, 3.6 * -(-len(panels) // 2)), paint)
    return path


def draw_curve(folder: Path) -> Path | None:
    """Accuracy against the number of examples of each class, a line per method."""
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for task, size in SIZES.items():
        for arm in few_shot_arms(task):
            values = [100 * value for value in arm.values("last").values()]
            if len(values) > 1:
                lines.setdefault(arm.label, []).append((size, float(np.mean(values)), float(np.std(values, ddof=1))))
    lines = {label: points for label, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    path = folder / "few-shot.svg"

    def paint(axes: Any) -> None:
        for place, (label, points) in enumerate(lines.items()):
            sizes, means, spreads = (np.array(column) for column in zip(*points, strict=True))
            shifted = sizes * 1.02 ** (place - len(lines) / 2)
            axes[0].errorbar(shifted, means, yerr=spreads, marker="o", markersize=4, capsize=2, label=label)
        axes[0].set_xscale("log", base=2)
        axes[0].set_xticks(list(SIZES.values()), [str(size) for size in SIZES.values()])
        axes[0].set_xlabel("examples of each class (methods set apart sideways)")
        axes[0].set_ylabel("accuracy, points (mean, deviation over seeds)")
        axes[0].legend()

    save(path, 1, 1, (6, 4), paint)
    return path


def draw_ranks(folder: Path) -> Path | None:
    """Effective rank and orthogonality loss of dW against accuracy, a dot per run."""
    arms = [arm for arm in read_arms(TIER1) if arm.label != "Full FT"]
    if not arms:
        return None
    path = folder / "rank-accuracy.svg"

    def paint(axes: Any) -> None:
        for one, measure, name in zip(
            axes,
            ("effective_rank", "orthogonality_excess"),
            ("effective rank of dW", "orthogonality loss of dW above its floor"),
            strict=True,
        ):
            for r in RANKS:
                last = [row["last"] for arm in arms if arm.setting.r == r for row in arm.runs.values()]
                last = [row for row in last if row.get(measure) is not None]
                one.plot(
                    [row[measure] for row in last],
                    [100 * row["eval_accuracy"] for row in last],
                    "o",
                    markersize=3,
                    alpha=0.6,
                    color=COLOURS[r],
                    label=f"R = {r}",
                )
            one.set_xlabel(name)
            one.set_ylabel("accuracy, points")
        axes[1].set_xscale("log")
        axes[0].legend()

    save(path, 1, 2, (10, 4), paint)
    return path


def draw_cost(folder: Path) -> Path | None:
    """Accuracy against the measured time of a step: a dot per R, a line per method, a panel per task."""
    costs = step_costs()
    panels = [(task, _points(task, costs)) for task in FEW_SHOT]
    panels = [(task, points) for task, points in panels if len(points) > 1]
    if not panels:
        return None
    path = folder / "cost.svg"

    def paint(axes: Any) -> None:
        for one, (task, points) in zip(axes, panels, strict=True):
            for method in sorted({name.split(",")[0] for name, *_ in points}):
                own = sorted(
                    (point for point in points if point[0].split(",")[0] == method), key=lambda point: point[1]
                )
                names, times, means, spreads = zip(*own, strict=True)
                one.errorbar(times, means, yerr=spreads, fmt="o-", markersize=4, linewidth=1, capsize=2)
                for name, time, mean in zip(names, times, means, strict=True):
                    one.annotate(name, (time, mean), textcoords="offset points", xytext=(5, 3), fontsize=7)
            one.set_xlabel("time of a step over the frozen model's")
            one.set_ylabel("accuracy, points (mean, deviation over seeds)")
            one.set_title(task)
            one.margins(x=0.25)

    save(path, 1, len(panels), (5 * len(panels), 4), paint)
    return path


@dataclass(frozen=True)
class Cost:
    """What training costs, beside the frozen model forward and backward.

    Attributes:
        time: of a step, over the frozen model's; median of pairs.
        memory: bytes above the frozen model's, at the peak of a step.
    """

    time: float
    memory: int


def step_costs() -> dict[tuple[str, int], Cost]:
    """By method and R, of the real encoder's geometry in float32, from the rows of the fast path."""
    found = {}
    for path in sorted(FAST_PATH.glob("rows-float32-*.jsonl")):
        rows = (json.loads(line) for line in path.read_text().splitlines())
        for row in (row for row in rows if row["kind"] == "summary" and row["model"] == "minilm"):
            r, kept = row["settings"]["r"], row["settings"]["directions"]
            names = {"peft": "LoRA", "rmlora": "RM-LoRA" if r == 8 else f"RM-LoRA, {kept} kept"}
            for contender, label in names.items():
                time = row["ratios"][f"{contender}/floor"]["median"]
                found[label, r] = Cost(time, row["memory"][contender]["excess_bytes"])
    return found


def _points(task: str, costs: dict[tuple[str, int], Cost]) -> list[tuple[str, float, float, float]]:
    found = []
    for arm in few_shot_arms(task):
        label, r = arm.label.split(", R = ")[0], arm.setting.r or 0
        values = [100 * value for value in arm.values("last").values()]
        if (label, r) in costs and len(values) > 1:
            time = costs[label, r].time
            found.append((f"{label}, R = {r}", time, float(np.mean(values)), float(np.std(values, ddof=1))))
    return found
