"""What a target said about an adapter: single checks with their errors, and the certificate they add up to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what, in a few words.
        passed: whether it is as it has to be.
        error: what was measured; None where a rule was read.
        tolerance: the largest error that passes; None where a rule was read.
        detail: what was found; empty if there is nothing to add.
        remedy: what to do where it failed.
    """

    name: str
    passed: bool
    error: float | None = None
    tolerance: float | None = None
    detail: str = ""
    remedy: str = ""


def within(name: str, error: float, tolerance: float, detail: str = "", remedy: str = "") -> Check:
    """Make the check that an error is at most the tolerance; NaN is not. A remedy is told only where it is needed.

    Example:
        >>> within("dW", 1e-7, 1e-6).passed, within("dW", float("nan"), 1e-6).passed
        (True, False)
    """
    passed = error <= tolerance
    return Check(name, passed, error, tolerance, detail, "" if passed else remedy)


@dataclass(frozen=True)
class Certificate:
    """All checks of one target.

    Attributes:
        target: its name.
        method: one line: what was done, and what was not.
        checks: in the order they were made.
        versions: of the packages that took part; of a program that was not run, the source its rules are from.
        date: UTC, as `YYYY-MM-DDTHH:MM:SSZ`.
        adapter: SHA-256 of the adapter's files, by name.
        base: name and hashes (or Hub commit) of the base model.
    """

    target: str
    method: str
    checks: tuple[Check, ...]
    versions: dict[str, str | None]
    date: str
    adapter: dict[str, str]
    base: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def worst(self) -> Check | None:
        """The measured check that is nearest to its tolerance, or furthest beyond it; None if nothing was measured."""
        measured = [check for check in self.checks if check.error is not None and check.tolerance]
        return max(measured, key=lambda check: _share(check), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"target": self.target, "passed": self.passed, **asdict(self)}


def _share(check: Check) -> float:
    error, tolerance = check.error or 0.0, check.tolerance or 1.0
    return float("inf") if error != error else error / tolerance
