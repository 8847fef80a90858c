"""The doctor from a configuration to its findings."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from rmlora.config import RunConfig
from rmlora.doctor.examine import examine
from rmlora.doctor.finding import Finding, worst
from rmlora.doctor.present import as_object, show_findings
from rmlora.doctor.steps import NUM_STEPS
from rmlora.doctor.trial import try_run
from rmlora.run.show import show_header
from rmlora.run.trainer import quieten
from rmlora.run.wording import say


def run_doctor(config: RunConfig, console: Console | None = None) -> tuple[list[Finding], dict[str, Any]]:
    """Take three training steps of a run, and tell what they show to be wrong; the output folder is not touched.

    Args:
        config: as `rmlora.config_source.resolve` returns it.
        console: where to show it; None shows nothing.

    Returns:
        The findings, and the same as an object for JSON.

    Raises:
        RmloraError: what would stop `rmlora train` before its first step.
    """
    console = console or Console(quiet=True)
    restore = quieten()
    try:
        subject = try_run(config)
        show_header(console, subject.plan)
        say(console, f"{NUM_STEPS} steps tried:")
        findings = examine(subject)
    finally:
        restore()
    show_findings(console, findings)
    return findings, as_object(findings, subject.plan.config.model_dump(mode="json"))


def exit_code(findings: list[Finding]) -> int:
    """Return 1 if anything is a problem, else 0.

    Example:
        >>> exit_code([Finding("scale", "warning", "")]), exit_code([Finding("scale", "problem", "")])
        (0, 1)
    """
    return int(worst(findings) == "problem")
