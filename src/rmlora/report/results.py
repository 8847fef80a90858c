"""The tables of a report: results with intervals and verdicts, how they came about, parameters, what became of dW."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rmlora.compare.arms import EPOCHS, Arm, Epoch, Row, Setting
from rmlora.compare.effect import describe_effect
from rmlora.compare.statistics import summarize
from rmlora.compare.verdicts import Comparison
from rmlora.report.curves import is_number
from rmlora.report.document import Table
from rmlora.report.number_format import NONE, compact, count, difference, mean_of, probability, with_spread

Compared = Mapping[tuple[str, Setting, Epoch], Comparison]


def results_table(arms: Sequence[Arm], compared: Compared, name: str, scale: float) -> Table:
    """The main table of one setting: both epochs of every method, its difference to the baseline, the verdicts."""
    rows = []
    for arm in arms:
        cells = [arm.label]
        for epoch in EPOCHS:
            found = compared.get((arm.label, arm.setting, epoch))
            values = summarize(list(arm.values(epoch).values()))
            cells.append(with_spread(values, scale))
            cells.append(difference(found.over_seeds, scale) if found else NONE)
            cells.append(found.verdict if found else "baseline")
        rows.append((*cells, str(len(arm.runs))))
    metric = arms[0].metric
    published = {arm.label: _published(arm) for arm in arms}
    columns = ["method", f"{metric}, last epoch", "difference", "verdict"]
    columns += [f"{metric}, best epoch", "difference (best)", "verdict (best)", "seeds"]
    if any(published.values()):
        columns.append("published")
        rows = [(*row, published[row[0]] or NONE) for row in rows]
    caption = (
        f"{arms[0].setting}: {metric}{', in points' if scale == 100 else ''}, mean ± standard deviation over seeds; "
        "paired difference to the baseline with its 95% t interval; verdicts after Holm's correction."
    )
    return Table(name, caption, tuple(columns), tuple(rows))


def tests_table(compared: Sequence[Comparison], name: str, scale: float) -> Table:
    """How every verdict was reached."""
    rows = []
    for one in compared:
        wide = difference(one.over_examples.interval, scale) if one.over_examples else NONE
        exact = "; ".join(f"{m.wins}:{m.losses} p {probability(m.p_value)}" for m in one.mcnemar) or NONE
        rows.append(
            (
                f"{one.label}, {one.epoch} epoch",
                describe_effect(one.over_seeds, one.metric, one.num_examples, scale),
                wide,
                exact,
                probability(one.p_value),
                probability(one.p_adjusted),
                f"{one.verdict}: {one.reason}",
            )
        )
    caption = (
        f"How the verdicts of {compared[0].setting} came about. Everything is against {compared[0].baseline}. Effect: "
        "over seeds, 95% t interval. Over seeds and examples: hierarchical bootstrap. McNemar: examples only the "
        "method gets right : only the baseline, exact, one per seed. p: the larger of the t test's and the bootstrap's."
    )
    columns = ("comparison", "effect", "over seeds and examples", "McNemar", "p", "p (Holm)", "verdict")
    return Table(name, caption, columns, tuple(rows), folded=True, in_paper=False)


def parameters_table(arms: Sequence[Arm], name: str) -> Table:
    """T, trainable when training starts, and I, kept at inference, each with and without the head."""
    rows = []
    for arm in arms:
        found = [row.get("parameters") or {} for row in arm.runs.values()]
        rows.append((arm.label, *(_counted(found, read) for read in _COUNTS.values())))
    caption = (
        f"{arms[0].setting}: parameters, mean over seeds where they differ. T: trained when training starts. I: kept "
        "at inference, without directions that add nothing."
    )
    return Table(name, caption, ("method", *_COUNTS), tuple(rows))


def update_table(arms: Sequence[Arm], name: str, scale: float) -> Table | None:
    """What was measured at the last epoch besides the metric: overfitting, rank, orthogonality."""
    metric = arms[0].metric
    measures: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        f"train {metric}": lambda last: _scaled(last.get(f"train_{metric}"), scale),
        f"{metric}": lambda last: _scaled(last.get(f"eval_{metric}"), scale),
        "gap": lambda last: _scaled(last.get("gap"), scale),
        "rank": lambda last: last.get("rank"),
        "effective rank": lambda last: last.get("effective_rank"),
        "stable rank": lambda last: last.get("stable_rank"),
        "orthogonality loss": lambda last: last.get("orthogonality_loss"),
        "its floor": lambda last: last.get("orthogonality_floor"),
        "masked share": lambda last: _scaled(last.get("masked_share"), 100.0),
    }
    filled = {
        title: [_mean([read(row.get("last") or {}) for row in arm.runs.values()], title) for arm in arms]
        for title, read in measures.items()
    }
    filled = {title: cells for title, cells in filled.items() if any(cell != NONE for cell in cells)}
    if not filled:
        return None
    rows = [(arm.label, *(cells[i] for cells in filled.values())) for i, arm in enumerate(arms)]
    tolerances = [(row.get("last") or {}).get("rank_tolerance") for arm in arms for row in arm.runs.values()]
    known = [float(value) for value in tolerances if is_number(value)]
    at = f" Rank counts singular values above {max(known):.1e} of the largest." if known else ""
    caption = (
        f"{arms[0].setting}: last epoch, mean over seeds (and over modules, for what is measured of dW). Gap: train "
        f"minus held-out. Masked share: of all movement of A and B, in percent.{at}"
    )
    return Table(name, caption, ("method", *filled), tuple(rows))


def budget_table(rows: Sequence[Row], name: str) -> Table | None:
    """The learning rates every method was given to choose from, and what was chosen; None if nothing was searched."""
    tried: dict[tuple[str, str, str, str], set[float]] = {}
    chosen: dict[tuple[str, str, str, str], set[float]] = {}
    for row in rows:
        where = str(row["task"]), str(row["model"]), str(row.get("r") or NONE), str(row.get("label") or row["method"])
        if is_number(row.get("lr")):
            (tried if row.get("kind") == "select" else chosen).setdefault(where, set()).add(float(row["lr"]))
    if not tried:
        return None
    lines = []
    for (task, model, r, label), used in chosen.items():
        rates = tried.get((task, model, r, label)) or used
        lines.append((label, task, model, r, _rates(rates), str(len(rates)), _rates(used)))
    caption = "Learning rates: what each method could choose from, on a part held out of train, and what it took."
    columns = ("method", "task", "model", "r", "tried", "how many", "taken")
    return Table(name, caption, columns, tuple(lines), folded=True, in_paper=False)


def _rates(rates: set[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted(rates))


_COUNTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "T": lambda p: p.get("trainable"),
    "T without head": lambda p: _minus(p.get("trainable"), p.get("head")),
    "I": lambda p: p.get("inference"),
    "I without head": lambda p: _minus(p.get("inference"), p.get("head")),
    "head": lambda p: p.get("head"),
}


def _minus(whole: Any, head: Any) -> Any:
    return whole - head if is_number(whole) and is_number(head) else None


def _counted(found: Sequence[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], Any]) -> str:
    values = [value for value in map(read, found) if is_number(value)]
    return count(sum(values) / len(values)) if values else NONE


def _scaled(value: Any, scale: float) -> float | None:
    return scale * float(value) if is_number(value) else None


def _mean(values: Sequence[Any], title: str) -> str:
    known = [float(value) for value in values if is_number(value)]
    if not known:
        return NONE
    if title in ("orthogonality loss", "its floor"):
        return compact(sum(known) / len(known))
    return mean_of(known, digits=1 if "rank" in title or title == "masked share" else 2)


def _published(arm: Arm) -> str:
    value = next((row["published"] for row in arm.runs.values() if row.get("published") is not None), None)
    return "" if value is None else str(value)
