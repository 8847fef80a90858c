"""All checks, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable

from rmlora.doctor.checks.data import lengths_fit, metric_exists, padding_is_inert, tokens_differ
from rmlora.doctor.checks.forecast import forecast
from rmlora.doctor.checks.learning import factors_moved, head_learns, optimizer_holds_all
from rmlora.doctor.checks.masks import masked_stayed
from rmlora.doctor.checks.penalty import penalty_counted_once
from rmlora.doctor.checks.saving import heads_saved, merge_is_equal, reload_is_equal
from rmlora.doctor.checks.settings import dtypes_are_safe, scale_is_sane
from rmlora.doctor.checks.start import starts_from_adapter
from rmlora.doctor.checks.steps import nothing_warned, numbers_finite, steps_run
from rmlora.doctor.finding import Finding
from rmlora.doctor.subject import Subject

Check = Callable[[Subject], Finding]

ALWAYS: tuple[Check, ...] = (steps_run, nothing_warned, tokens_differ, lengths_fit, scale_is_sane, dtypes_are_safe)
"""Those that need no step."""

CHECKS: tuple[Check, ...] = (
    steps_run,
    nothing_warned,
    numbers_finite,
    starts_from_adapter,
    factors_moved,
    masked_stayed,
    head_learns,
    optimizer_holds_all,
    penalty_counted_once,
    metric_exists,
    tokens_differ,
    lengths_fit,
    padding_is_inert,
    scale_is_sane,
    dtypes_are_safe,
    heads_saved,
    reload_is_equal,
    merge_is_equal,
    forecast,
)


def examine(subject: Subject) -> list[Finding]:
    """Return what every check finds; after a failure, of those that need no step."""
    return [check(subject) for check in (ALWAYS if subject.failure else CHECKS)]
