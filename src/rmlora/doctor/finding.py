"""One thing that was looked at: how it stands, what was seen, and what to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Verdict = Literal["ok", "skipped", "warning", "problem"]
"""From best to worst: as it should be; not looked at, and why; likely not meant; will not do what was asked for."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        verdict: how it stands.
        seen: what was measured, in one sentence.
        remedy: what to change; empty where nothing is to be.
        values: the numbers behind `seen`, by name.
    """

    check: str
    verdict: Verdict
    seen: str
    remedy: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it.

        Example:
            >>> Finding("scale", "ok", "2").to_dict()["verdict"]
            'ok'
        """
        return asdict(self)


def worst(findings: Iterable[Finding]) -> Verdict:
    """Return the worst verdict of all; "ok" of none.

    Example:
        >>> worst([Finding("a", "ok", ""), Finding("b", "problem", ""), Finding("c", "warning", "")])
        'problem'
    """
    order: tuple[Verdict, ...] = get_args(Verdict)
    return max((finding.verdict for finding in findings), key=order.index, default="ok")
