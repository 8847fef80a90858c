"""The environment a study was run in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rmlora.report.document import Table
from rmlora.report.study_files import StudyFiles

_SHORT = 16  # digits of a hash that are enough to tell two files apart


def environment_table(files: StudyFiles) -> Table:
    """List versions, machine, code, and hashes of models and data; runs that differ from one another are named.

    Args:
        files: of the study; environment.json beside study.yaml, or those of the runs.
    """
    own = dict(flatten(files.json(files.path / "environment.json")))
    own.pop("folder", None)  # where it was started; a report is for others
    found: dict[str, dict[str, list[str]]] = {}
    for row in files.rows:
        folder = files.cell(row)
        for name, value in flatten(files.json(folder / "environment.json")) if folder is not None else ():
            found.setdefault(name, {}).setdefault(value, []).append(str(row.get("cell")))
    for name, values in found.items():
        if name not in own and not name.startswith(("command", "folder")):
            listed = [value if len(values) == 1 else f"{value} ({len(cells)} runs)" for value, cells in values.items()]
            own[name] = "; ".join(listed)
    rows = tuple(own.items()) or (("environment.json", "missing"),)
    return Table("environment", "What the numbers may depend on.", ("what", "value"), rows, folded=True, in_paper=False)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name every value of nested mappings by its path; long hashes are cut, empty values left out.

    Example:
        >>> list(flatten({"versions": {"torch": "2.13"}, "git": None, "command": ["rmlora", "train"]}))
        [('versions: torch', '2.13'), ('command', 'rmlora train')]
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}: ")
        elif isinstance(value, list):
            yield f"{prefix}{name}", " ".join(map(str, value))
        elif value is not None:
            text = str(value)
            is_hash = len(text) >= 40 and all(c in "0123456789abcdef" for c in text)
            yield f"{prefix}{name}", text[:_SHORT] if is_hash else text
