"""From a study's rows and predictions to verdicts: better, worse, or no evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rmlora.compare.arms import EPOCHS, Arm, Epoch, Row, Setting, choose_baseline, sort_into_arms
from rmlora.compare.bootstrap import Resampled, bootstrap_seeds_and_examples
from rmlora.compare.effect import COUNTED, LOWER_IS_BETTER
from rmlora.compare.mcnemar import McNemar, mcnemar
from rmlora.compare.predictions import Predictions
from rmlora.compare.scores import Score
from rmlora.compare.statistics import Interval, Summary, holm, pair_by_seed, paired_p_value, summarize, t_interval

Verdict = Literal["better", "worse", "no evidence"]
Read = Callable[[Row], Predictions | None]

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """One method against the baseline in one setting at one epoch.

    Attributes:
        label: the method's display name.
        baseline: the baseline's.
        setting: task, model and r.
        epoch: "last", or "best" (chosen on the held-out part itself, so flattering to both sides).
        metric: its name.
        seeds: those both sides have.
        summary: the method's values.
        baseline_summary: the baseline's.
        over_seeds: t interval of the paired differences.
        over_examples: resampled over seeds and examples; None where predictions are missing (always at the best
            epoch, of which none are kept).
        mcnemar: one exact test per seed; empty where predictions are missing.
        num_examples: of the held-out part, if known.
        p_value: the larger of the t test's and, where there is one, the bootstrap's: a difference must hold on other
            seeds and on other examples. NaN where nothing can be tested.
        p_adjusted: after Holm, over all comparisons at this epoch.
        verdict: in words.
        reason: one sentence on why.
    """

    label: str
    baseline: str
    setting: Setting
    epoch: Epoch
    metric: str
    seeds: tuple[int, ...]
    summary: Summary
    baseline_summary: Summary
    over_seeds: Interval
    over_examples: Resampled | None
    mcnemar: tuple[McNemar, ...]
    num_examples: int | None
    p_value: float
    p_adjusted: float = math.nan
    verdict: Verdict = "no evidence"
    reason: str = ""


def compare_methods(
    rows: Iterable[Row],
    read: Read | None = None,
    *,
    baseline: str | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every method of a study with the baseline, in every setting, at the last and at the best epoch.

    The last epoch and the best epoch are a family each for Holm's procedure.

    Args:
        rows: of the study; not mutated.
        read: returns a row's predictions, or None. Called for final rows only.
        baseline: label or method; None is plain LoRA.
        num_resamples: of the bootstrap.
        seed: of its private generator.

    Returns:
        Comparisons at the last epoch, then at the best. Settings without the baseline have none.

    Raises:
        ConfigError: the baseline is not in the study.

    Example:
        >>> def row(label, seed, value):
        ...     found = {"eval_f1": value}
        ...     return {"label": label, "method": label, "task": "t", "model": "m", "r": 8, "seed": seed,
        ...             "metric": "f1", "best": found, "last": found}
        >>> values = {"lora": (0.5, 0.52, 0.51), "rm-lora": (0.61, 0.62, 0.615)}
        >>> rows = [row(name, seed, value) for name in values for seed, value in enumerate(values[name])]
        >>> compare_methods(rows)[0].verdict
        'better'
    """
    rows = list(rows)
    name = choose_baseline(rows, baseline)
    arms = sort_into_arms(rows)
    against = {arm.setting: arm for arm in arms if arm.label == name}
    pairs = [(arm, against[arm.setting]) for arm in arms if arm.label != name and arm.setting in against]
    # Both sides and both epochs look at the same files; each is read once.
    scores = _Answers(read, rows)
    compared: list[Comparison] = []
    for epoch in EPOCHS:
        family = [_compare(arm, base, epoch, scores, num_resamples, seed) for arm, base in pairs]
        adjusted = holm([comparison.p_value for comparison in family])
        compared += [_judge(one, p) for one, p in zip(family, adjusted, strict=True)]
    return compared


class _Answers:
    """Predictions by row, read when first asked for."""

    def __init__(self, read: Read | None, rows: Sequence[Row]) -> None:
        self.read = read
        self.known: dict[int, Predictions | None] = {}
        self.rows = rows  # keeps their identities alive

    def of(self, row: Row) -> Predictions | None:
        if id(row) not in self.known:
            self.known[id(row)] = None if self.read is None else self.read(row)
        return self.known[id(row)]


def _compare(arm: Arm, base: Arm, epoch: Epoch, answers: _Answers, num_resamples: int, seed: int) -> Comparison:
    values, others = arm.values(epoch), base.values(epoch)
    seeds, differences = pair_by_seed(values, others)
    both = _answers_of_both(arm, base, seeds, answers)
    # Predictions are those of the last epoch: of the best one only its metric is known.
    resampled = _resample(both, arm.metric, num_resamples, seed) if both and epoch == "last" else None
    exact = tuple(
        mcnemar(a.correct, b.correct)
        for a, b in both
        if epoch == "last" and arm.metric in COUNTED and a.correct is not None and b.correct is not None
    )
    p_seeds = paired_p_value(differences)
    p_value = p_seeds if resampled is None or math.isnan(p_seeds) else max(p_seeds, resampled.p_value)
    return Comparison(
        label=arm.label,
        baseline=base.label,
        setting=arm.setting,
        epoch=epoch,
        metric=arm.metric,
        seeds=seeds,
        summary=summarize(list(values.values())),
        baseline_summary=summarize(list(others.values())),
        over_seeds=t_interval(differences),
        over_examples=resampled,
        mcnemar=exact,
        num_examples=_num_examples(arm, both),
        p_value=p_value,
    )


def _answers_of_both(
    arm: Arm, base: Arm, seeds: Sequence[int], answers: _Answers
) -> list[tuple[Predictions, Predictions]]:
    """Predictions of both sides by seed; empty unless every seed has both, of the same examples."""
    found = []
    for one in seeds:
        ours, theirs = answers.of(arm.runs[one]), answers.of(base.runs[one])
        if ours is None or theirs is None or not ours.matches(theirs):
            return []
        found.append((ours, theirs))
    return found if len({len(ours) for ours, _ in found}) == 1 else []


def _resample(
    both: Sequence[tuple[Predictions, Predictions]], metric: str, num_resamples: int, seed: int
) -> Resampled | None:
    sides: tuple[list[Score], list[Score]] = ([], [])
    for pair in both:
        for side, answered in zip(sides, pair, strict=True):
            score = answered.score(metric)
            if score is None:
                return None
            side.append(score)
    return bootstrap_seeds_and_examples(*sides, num_resamples=num_resamples, seed=seed)


def _num_examples(arm: Arm, both: Sequence[tuple[Predictions, Predictions]]) -> int | None:
    if both:
        return len(both[0][0])
    for row in arm.runs.values():
        counted = (row.get("examples") or {}).get("eval")
        if counted:
            return int(counted)
    return None


def _judge(comparison: Comparison, p_adjusted: float) -> Comparison:
    """Add the verdict and its reason."""
    n = len(comparison.seeds)
    verdict: Verdict = "no evidence"
    if n == 0:
        reason = "no seed was run by both."
    elif n == 1:
        reason = "one seed: what another seed would have done is unknown."
    elif p_adjusted <= SIGNIFICANT:
        rises = comparison.over_seeds.estimate > 0
        verdict = "better" if rises != (comparison.metric in LOWER_IS_BETTER) else "worse"
        held = "other seeds and other examples" if comparison.over_examples else "other seeds"
        reason = f"p = {p_adjusted:.3g} after Holm: it should hold on {held}."
    else:
        reason = f"p = {p_adjusted:.2g} after Holm{_weakest(comparison)}."
    return replace(comparison, p_adjusted=p_adjusted, verdict=verdict, reason=reason)


def _weakest(comparison: Comparison) -> str:
    """What holds a verdict back: that many comparisons are made, or one of the two tests alone."""
    if comparison.p_value <= SIGNIFICANT:
        return f", {comparison.p_value:.2g} before: more seeds could tell"
    if comparison.over_examples is None:
        return ""
    by_seeds, by_examples = comparison.over_seeds.contains_zero, comparison.over_examples.interval.contains_zero
    if by_seeds and not by_examples:
        return ": too few or too different seeds"
    if by_examples and not by_seeds:
        return ": other examples could undo it"
    return ""
