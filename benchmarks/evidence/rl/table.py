"""Write the tables of README.md from rows.jsonl: python table.py"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from physics import TASKS
from study import HERE, METHODS, SEEDS, Cell, read_rows, tuned

from rmlora.compare.statistics import Interval, holm, pair_by_seed, paired_p_value, summarize, t_interval
from rmlora.files import write_text

README = HERE / "README.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
METRICS = ("final", "area")
COMPARED = (
    ("RM-LoRA-8", "LoRA-8"),
    ("RM-LoRA-32", "LoRA-32"),
    ("LoRA-8", "full"),
    ("RM-LoRA-8", "full"),
)


@dataclass(frozen=True)
class Finding:
    """A paired difference of two methods on one task, in one metric."""

    task: str
    metric: str
    first: str
    second: str
    interval: Interval
    p_value: float
    seeds: int
    wins: int


def main() -> None:
    """Replace what stands between the marks."""
    rows = read_rows()
    text = README.read_text()
    head, foot = text[: text.index(BEGIN)], text[text.index(END) :]
    write_text(README, head + BEGIN + "\n" + "\n".join(lines(rows)) + "\n" + foot)


def lines(rows: list[Cell]) -> Iterator[str]:
    """All tables."""
    yield from policies(rows)
    for task in TASKS:
        if any(row["kind"] == "run" and row["task"] == task for row in rows):
            yield from means(rows, task)
    yield from differences(rows)
    minutes = sum(row["cpu_seconds"] for row in rows) / 60
    yield f"{len(rows)} rows, {minutes:.0f} core-minutes together, pre-training and tuning included."


def policies(rows: list[Cell]) -> Iterator[str]:
    """How good the pre-trained policies are before and after the change."""
    yield "| task | policy | used for | return, old physics | return, changed physics |"
    yield "|---|--:|---|--:|--:|"
    for row in sorted((r for r in rows if r["kind"] == "pretrain"), key=lambda r: (r["task"], r["seed"])):
        used = "tuning" if row["seed"] >= 100 else "reported"
        yield f"| {row['task']} | {row['seed']} | {used} | {row['old']:.1f} | {row['changed']:.1f} |"
    yield ""


def means(rows: list[Cell], task: str) -> Iterator[str]:
    """Mean and deviation of every method, and its three rates on the tuning seed."""
    rates = ", ".join(f"{rate:g}" for rate in TASKS[task].rates)
    yield f"**{task}**\n"
    yield f"| method | trained | rate | final return | area | seeds | tuning seed: final (area) at {rates} |"
    yield "|---|--:|--:|--:|--:|--:|---|"
    for method in METHODS:
        own = runs(rows, task, method)
        if not own:
            continue
        tried = tuned(rows, task, method)
        shown = ", ".join("{:.0f} ({:.0f})".format(*tried[rate]) for rate in TASKS[task].rates) if tried else ""
        some = next(iter(own.values()))
        yield (
            f"| {method} | {some['trained']:,} | {some['rate'] or '-'} | {spread(own, 'final')} "
            f"| {spread(own, 'area')} | {len(own)} | {shown} |"
        )
    yield ""


def spread(own: dict[int, Cell], metric: str) -> str:
    """Mean and standard deviation over seeds."""
    summary = summarize([row[metric] for row in own.values()])
    return f"{summary.mean:.1f} ± {summary.spread:.1f}"


def differences(rows: list[Cell]) -> Iterator[str]:
    """Paired by seed, all adjusted together."""
    found = list(find_all(rows))
    yield f"Paired differences over seeds, first minus second; p after Holm over the {len(found)} rows of this table.\n"
    yield "| task | metric | first | second | difference [95 % t interval] | first ahead | p | p, Holm |"
    yield "|---|---|---|---|--:|--:|--:|--:|"
    for one, adjusted in zip(found, holm([one.p_value for one in found]), strict=True):
        gap = f"{one.interval.estimate:+.1f} [{one.interval.low:+.1f}, {one.interval.high:+.1f}]"
        yield (
            f"| {one.task} | {one.metric} | {one.first} | {one.second} | {gap} "
            f"| {one.wins} of {one.seeds} | {one.p_value:.3f} | {adjusted:.3f} |"
        )
    yield ""


def find_all(rows: list[Cell]) -> Iterator[Finding]:
    """Every comparison of which both sides have run."""
    for task in TASKS:
        for first, second in COMPARED:
            sides = [runs(rows, task, method) for method in (first, second)]
            if not all(sides):
                continue
            for metric in METRICS:
                seeds, gaps = pair_by_seed(*({s: row[metric] for s, row in side.items()} for side in sides))
                interval, p_value = t_interval(gaps), paired_p_value(gaps)
                yield Finding(task, metric, first, second, interval, p_value, len(seeds), int((gaps > 0).sum()))


def runs(rows: list[Cell], task: str, method: str) -> dict[int, Cell]:
    """The reported runs of a method, by seed."""
    own = (r for r in rows if r["kind"] == "run" and r["task"] == task and r["method"] == method)
    return {r["seed"]: r for r in own if r["seed"] in SEEDS}


if __name__ == "__main__":
    main()
