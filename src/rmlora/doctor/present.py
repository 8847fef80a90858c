"""Showing the findings: a table for people, an object for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rmlora.doctor.finding import Finding, worst
from rmlora.run.wording import say

_STYLES = {"ok": "green", "skipped": "dim", "warning": "yellow", "problem": "bold red"}


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print a row per finding, what to change below those that ask for it, and how many of each there are."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("seen", overflow="fold")
    for finding in findings:
        style = _STYLES[finding.verdict]
        seen = escape(finding.seen)
        if finding.remedy:
            seen += f"\n[bold]to change:[/bold] {escape(finding.remedy)}"
        table.add_row(finding.check, f"[{style}]{finding.verdict}[/{style}]", seen)
    console.print(table, highlight=False)
    say(console, summary(findings))


def summary(findings: Sequence[Finding]) -> str:
    """Count the findings in a sentence.

    Example:
        >>> summary([Finding("a", "ok", ""), Finding("b", "warning", "")])
        'No problem, 1 warning (b). The output folder was not touched.'
    """
    told = ", ".join(_count(findings, verdict) for verdict in ("problem", "warning"))
    return f"{told[0].upper()}{told[1:]}. The output folder was not touched."


def as_object(findings: Sequence[Finding], config: dict[str, Any]) -> dict[str, Any]:
    """Return what `--json` prints.

    Args:
        findings: in order.
        config: of the run, complete.
    """
    return {"verdict": worst(findings), "findings": [finding.to_dict() for finding in findings], "config": config}


def _count(findings: Sequence[Finding], verdict: str) -> str:
    names = [finding.check for finding in findings if finding.verdict == verdict]
    if not names:
        return f"no {verdict}"
    return f"{len(names)} {verdict}{'s' if len(names) > 1 else ''} ({', '.join(names)})"
