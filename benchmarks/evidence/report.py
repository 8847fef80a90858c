"""Write docs/evidence.md and its figures from the committed rows: python benchmarks/evidence/report.py"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from contrasts import ABLATIONS, FEW_SHOT, HERE, TIER1, Finding, few_shot_arms, find_all, read_arms
from pictures import (
    RANKS,
    differences,
    draw_cost,
    draw_curve,
    draw_few_shot,
    draw_forest,
    draw_ranks,
    step_costs,
)
from prediction import correlate_all
from strength import draw_convergence, draw_heat_map

from rmlora.compare.arms import Arm
from rmlora.files import write_text

ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "evidence.md"
FIGURES = PAGE.parent / "evidence"


def main() -> None:
    """Write the page."""
    write_text(PAGE, "\n".join(lines()).rstrip() + "\n")
    print(f"wrote {PAGE.relative_to(ROOT)} and {len(list(FIGURES.glob('*.svg')))} figures")


def lines() -> Iterator[str]:
    """The page, line by line: what was asked, figures first, then tables, then what they do not show."""
    yield (HERE / "head.md").read_text()
    yield from figure(draw_forest(FIGURES), "The classification layer alone: every method minus LoRA at the same R")
    yield from figure(draw_few_shot(FIGURES), "Whole models on few examples: every method minus LoRA at R = 8")
    yield "Means of paired differences over five seeds, with 95% t intervals; not corrected for their number. Green"
    yield "lies above 0, red below.\n"
    yield "## The questions, answered\n"
    yield from answers(find_all())
    yield (HERE / "reading.md").read_text()
    yield "## The classification layer alone\n"
    yield from methods_table()
    yield from figure(
        draw_heat_map(FIGURES), "Accuracy and effective rank by strength of the penalty and share of directions"
    )
    yield from figure(draw_convergence(FIGURES), "Training loss per epoch by share of directions, three values of R")
    yield from ablations()
    yield "## Does effective rank predict accuracy?\n"
    yield from figure(
        draw_ranks(FIGURES), "Effective rank and orthogonality loss of dW against accuracy, a dot per run"
    )
    yield from predictions()
    yield "## Whole models on few examples\n"
    yield from few_shot_tables()
    yield from figure(draw_curve(FIGURES), "Accuracy against the number of examples of each class")
    yield from figure(draw_cost(FIGURES), "Accuracy against the time of a step")
    yield from costs()
    yield (HERE / "foot.md").read_text()


def figure(path: Path | None, caption: str) -> Iterator[str]:
    """A picture with its caption; nothing where its rows are not there yet."""
    if path is not None:
        yield f"![{caption}](evidence/{path.name})\n"


def answers(findings: list[Finding]) -> Iterator[str]:
    """One row per question and setting."""
    if not findings:
        yield "Nothing that was asked has been run yet.\n"
        return
    yield "Accuracy at the last epoch, first minus second, in points; Holm over all rows of this table.\n"
    yield "| question | setting | first | second | difference | p, after Holm | verdict |"
    yield "|---|---|---|---|--:|--:|---|"
    for one in findings:
        asked, gap = one.contrast, one.difference
        yield (
            f"| {asked.question} | {asked.where} | {asked.first.label} | {asked.second.label} "
            f"| {gap.estimate:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}] | {one.p_adjusted:.3f} | {one.verdict} |"
        )
    yield ""


def methods_table() -> Iterator[str]:
    """Mean and deviation of every method at every R, with the learning rates that were chosen."""
    arms = read_arms(TIER1)
    if not arms:
        yield "Not run yet.\n"
        return
    last = {arm.label: np.mean(list(arm.values("last").values())) for arm in arms if arm.setting.r == RANKS[-1]}
    labels = sorted(last, key=lambda label: -last[label])
    yield "Test accuracy in points, mean and standard deviation over seeds, and the learning rate that was chosen."
    yield f"Best at R = {RANKS[-1]} first. Knobs that were set: {knobs(arms)}.\n"
    yield "| method | " + " | ".join(f"R = {r}" for r in RANKS) + " |"
    yield "|---|" + "--:|" * len(RANKS)
    for label in labels:
        own = {arm.setting.r: arm for arm in arms if arm.label == label}
        yield f"| {label} | " + " | ".join(score(own.get(r)) for r in RANKS) + " |"
    yield ""


def knobs(arms: list[Arm]) -> str:
    """What the methods were told."""
    args = {arm.label: next(iter(arm.runs.values()))["method_args"] for arm in arms}
    told = {label: " ".join(f"{name}={value}" for name, value in own.items()) for label, own in sorted(args.items())}
    return "; ".join(f"{label} {words}" for label, words in told.items() if words)


def score(arm: Arm | None) -> str:
    """Mean, deviation and learning rate of an arm."""
    if arm is None:
        return "-"
    rates = {row["lr"] for row in arm.runs.values()}
    return f"{mean_and_spread(arm)} ({', '.join(f'{rate:g}' for rate in sorted(rates))})"


def mean_and_spread(arm: Arm) -> str:
    """In points."""
    values = 100 * np.array(list(arm.values("last").values()))
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" if len(values) > 1 else f"{values.mean():.2f}"


def ablations() -> Iterator[str]:
    """Each variant against RM-LoRA as it stands."""
    arms = read_arms(ABLATIONS)
    if not arms:
        return
    gaps = {label: (estimate, low, high) for label, estimate, low, high in differences(arms, "RM-LoRA")}
    yield "**Ablations.** One thing changed at a time from RM-LoRA, R = 32. *Learnt* is the training loss at the end.\n"
    yield "| variant | accuracy (rate) | minus RM-LoRA | effective rank | learnt |"
    yield "|---|--:|--:|--:|--:|"
    for arm in arms:
        gap = "-" if arm.label not in gaps else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*gaps[arm.label])
        last = [row["last"] for row in arm.runs.values()]
        rank, loss = (np.mean([row[name] for row in last]) for name in ("effective_rank", "train_loss"))
        yield f"| {arm.label} | {score(arm)} | {gap} | {rank:.1f} | {loss:.3f} |"
    yield ""


def predictions() -> Iterator[str]:
    """Rank correlations with accuracy."""
    if not read_arms(TIER1):
        yield "Not run yet.\n"
        return
    yield "Spearman's correlation with test accuracy over all methods' runs of one R; *beyond* holds the training loss"
    yield "still. Intervals resample methods with all their seeds: runs of one method are no independent evidence.\n"
    yield "| measure | R | runs | correlation | beyond training loss |"
    yield "|---|--:|--:|--:|--:|"
    for one in correlate_all():
        whole = "{:+.2f} [{:+.2f}, {:+.2f}]".format(one.whole, *one.whole_interval)
        beyond = "{:+.2f} [{:+.2f}, {:+.2f}]".format(one.beyond, *one.beyond_interval)
        yield f"| {one.measure} | {one.r} | {one.runs} | {whole} | {beyond} |"
    yield ""


def few_shot_tables() -> Iterator[str]:
    """One table per task, whatever has been run of it."""
    for task in FEW_SHOT:
        arms = few_shot_arms(task)
        if not arms:
            continue
        yield f"**{task}**\n"
        yield "| method | R | accuracy (rate) | train accuracy | seeds |"
        yield "|---|--:|--:|--:|--:|"
        for arm in arms:
            train = 100 * np.mean([row["last"]["train_accuracy"] for row in arm.runs.values()])
            r = "-" if arm.label == "Full FT" else arm.setting.r
            yield f"| {arm.label} | {r} | {score(arm)} | {train:.2f} | {len(arm.runs)} |"
        yield ""


def costs() -> Iterator[str]:
    """What a step costs, side by side."""
    found = step_costs()
    if not found:
        return
    yield "A step of the model's geometry, 32 x 64 tokens, float32, two cores; LoRA is PEFT's own. Rows and spread:"
    yield "[benchmarks/2026-11-25_fast-path](../benchmarks/2026-11-25_fast-path/README.md). Memory is what the step"
    yield "needs above the frozen model's.\n"
    yield "| method | R | time of a step over the frozen model's | memory, MB |"
    yield "|---|--:|--:|--:|"
    for (label, r), cost in sorted(found.items(), key=lambda one: one[1].time):
        yield f"| {label} | {r} | {cost.time:.2f} | {cost.memory / 1e6:.1f} |"
    yield ""


if __name__ == "__main__":
    main()
