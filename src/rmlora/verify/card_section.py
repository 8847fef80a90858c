"""The section `## Verified` of a model card: one row per target, replaced when a target is checked again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rmlora.analysis.folder import WEIGHTS_NAME
from rmlora.errors import AdapterError
from rmlora.files import write_text
from rmlora.verify.certificate import Certificate

_TITLE = "## Verified"
_HEAD = ("| target | result | largest error (tolerance) | checked with | date | adapter |", "|---|---|---|---|---|---|")


def write_section(card: Path, certificates: Sequence[Certificate]) -> None:
    """Put certificates into a card; the rest of the card stays as it is, and a missing card is made.

    Args:
        card: README.md of an adapter folder; replaced whole.
        certificates: of one adapter.

    Raises:
        RmloraError: the card cannot be read or written.
    """
    try:
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f'cannot read "{card}": {error}') from error
    write_text(card, with_section(text, certificates))


def with_section(text: str, certificates: Sequence[Certificate]) -> str:
    """Return a card's text with the certificates in its section `## Verified`.

    Rows of the same target, and rows about other weights than these, are replaced.

    Args:
        text: Markdown; the section is put at its end if it has none.
        certificates: at least one, of one adapter.

    Example:
        >>> one = Certificate("vllm", "rules read", (), {"vllm": "rules"}, "2026-11-25T12:00:00Z", {}, {})
        >>> card = with_section("# Mine", [one])
        >>> card == with_section(card, [one]), card.count("| vllm |")
        (True, 1)
    """
    digest = _digest(certificates[0])
    done = {certificate.target for certificate in certificates}
    before, old, after = _split(text)
    kept = [row for row in old if row.rstrip(" |").endswith(digest) and row.split("|")[1].strip() not in done]
    rows = [*kept, *(_row(certificate) for certificate in certificates)]
    told = [f"- {certificate.target}: {certificate.method}" for certificate in certificates]
    notes = sorted(
        {*told, *(n for n in _notes(text) if n[2:].split(":")[0] in {r.split("|")[1].strip() for r in kept})}
    )
    section = "\n".join([_TITLE, "", *_HEAD, *sorted(rows), "", "By `rmlora verify`, on a CPU:", "", *notes, ""])
    return f"{before}{section}{after}"


def _split(text: str) -> tuple[str, list[str], str]:
    """What stands before the section, its rows, and what stands after it."""
    found = re.search(rf"(?ms)^{_TITLE}\s*$.*?(?=^## |\Z)", text)
    if found is None:
        return (f"{text.rstrip()}\n\n" if text.strip() else ""), [], ""
    rows = [line for line in found[0].splitlines() if line.startswith("| ")][1:]
    after = text[found.end() :]
    return text[: found.start()], rows, f"\n{after}" if after else ""


def _notes(text: str) -> list[str]:
    found = re.search(rf"(?ms)^{_TITLE}\s*$.*?(?=^## |\Z)", text)
    return [] if found is None else [line for line in found[0].splitlines() if line.startswith("- ")]


def _row(certificate: Certificate) -> str:
    worst = certificate.worst
    error = "none measured" if worst is None else f"{worst.error:.1e} ({worst.tolerance:.0e})"
    versions = ", ".join(f"{name} {version}" for name, version in certificate.versions.items() if version)
    result = "passed" if certificate.passed else "FAILED"
    cells = (certificate.target, result, error, versions, certificate.date[:10], _digest(certificate))
    return f"| {' | '.join(cells)} |"


def _digest(certificate: Certificate) -> str:
    return certificate.adapter.get(WEIGHTS_NAME, "")[:12]
